"""
Let a poller live and be killed, again and again, at instants that a seed decides. For tests only.

    python -m serviceradar_poller.testing.lives CONFIG PROMISES SEED LIVES

The program is loaded once; each life is a fork of it, a whole poller with a process of its own, that ends by SIGKILL.
Whatever is sealed is noted in the file PROMISES after the seal has returned, one line each: id, timestamp, statuses.
After each kill one line of JSON says how long it lived and which reports wait in its spool.
"""

from __future__ import annotations

import json
import os
import random  # noqa: TID251 — seeded by the test
import signal
import sys
import threading
from pathlib import Path

from serviceradar_poller.app.run import environment, run
from serviceradar_poller.config.loading import load
from serviceradar_poller.errors import SpoolError
from serviceradar_poller.reporting.spool import NewReport, Spool
from serviceradar_poller.reporting.spool.inspect import look

#: Seconds of a life; a poller is up in some 0.5 s beside four others, so that some die young.
LIFE_S = (0.05, 1.5)


def main(argv: list[str]) -> int:
    """Live *argv*'s lives."""
    config, promises, seed, lives = Path(argv[0]), argv[1], argv[2], int(argv[3])
    rng = random.Random(seed)
    loaded = load(str(config), environment())
    state_dir = Path(loaded.config.state_dir)
    pause = threading.Event()
    for number in range(lives):
        life_s = rng.uniform(*LIFE_S)
        pid = os.fork()
        if pid == 0:
            _live(config, promises)
        pause.wait(life_s)
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        line = {"life": number, "life_s": life_s, "by_itself": bool(ended), "waiting": _waiting(state_dir)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return 0


def _live(config: Path, promises: str) -> None:
    """Be a poller, until it ends."""
    log = os.open(config.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    file = os.open(promises, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seal = Spool.seal

    async def noted(spool: Spool, report: NewReport) -> int:
        report_id = await seal(spool, report)
        os.write(file, f"{report_id} {report.timestamp} {report.calls[0].status_count}\n".encode())
        return report_id

    Spool.seal = noted  # type: ignore[method-assign, assignment]
    code = 70
    try:
        code = run(load(str(config), environment()), environment())
    finally:
        os._exit(code)


def _waiting(state_dir: Path) -> list[tuple[int, int, int]]:
    """Return id, timestamp and statuses of each report that waits, oldest first."""
    try:
        with look(state_dir) as inspection:
            return [(row.id, row.timestamp, row.fresh) for row in inspection.rows() if not row.reason]
    except SpoolError:
        return []  # it died before its spool was made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
