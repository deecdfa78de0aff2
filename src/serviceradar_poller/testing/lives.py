"""
Let a poller live and be killed, again and again, at instants that a seed decides. For tests only.

Some die while they start. The others are killed a drawn time after they have sealed for the first time, however long a
busy machine takes for that.

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

#: Share of the lives that end before their time, and seconds of such a life.
YOUNG, YOUNG_S = 0.3, (0.05, 0.6)
#: Seconds that the others live on after their first seal; it comes some 0.5 s after the start, beside four others.
LIFE_S = (0.0, 1.0)
#: A poller that has sealed nothing by then never will.
SEAL_S_MAX = 30.0
LOOK_S = 0.005


def main(argv: list[str]) -> int:
    """Live *argv*'s lives."""
    config, promises, seed, lives = Path(argv[0]), argv[1], argv[2], int(argv[3])
    rng = random.Random(seed)
    loaded = load(str(config), environment())
    state_dir = Path(loaded.config.state_dir)
    pause = threading.Event()
    for number in range(lives):
        young = rng.random() < YOUNG
        life_s = rng.uniform(*(YOUNG_S if young else LIFE_S))
        promised_bytes = _size(promises)
        pid = os.fork()
        if pid == 0:
            _live(config, promises)
        looks = 0 if young else round(SEAL_S_MAX / LOOK_S)
        while looks and _size(promises) == promised_bytes:
            looks -= 1
            pause.wait(LOOK_S)
        pause.wait(life_s)
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        line = {"life": number, "young": young, "life_s": life_s, "by_itself": bool(ended)}
        sys.stdout.write(json.dumps({**line, "waiting": _waiting(state_dir)}) + "\n")
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


def _size(promises: str) -> int:
    """Return how much has been noted so far."""
    return os.path.getsize(promises) if os.path.exists(promises) else 0


def _waiting(state_dir: Path) -> list[tuple[int, int, int]]:
    """Return id, timestamp and statuses of each report that waits, oldest first."""
    try:
        with look(state_dir) as inspection:
            return [(row.id, row.timestamp, row.fresh) for row in inspection.rows() if not row.reason]
    except SpoolError:
        return []  # it died before its spool was made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
