"""
Fuzz the HTTP/2 session: play mutants of a corpus, and keep those that execute something new.

    python -m serviceradar_poller.testing.http2_fuzz CORPUS --seconds 60 --seed 1
"""

from __future__ import annotations

import argparse
import random  # noqa: TID251 — seeded by the caller
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serviceradar_poller.testing.http2_play import load
from serviceradar_poller.testing.http2_search import Search


def main(arguments: Sequence[str] | None = None) -> int:
    """Search for a while; write what was found beside the corpus if asked. A failure prints its sequence."""
    parser = argparse.ArgumentParser(prog="http2_fuzz", description=__doc__.partition("\n\n")[0].strip())
    parser.add_argument("corpus", type=Path, help="folder of sequences, *.txt")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for sequences that execute something new")
    options = parser.parse_args(arguments)
    search = Search(load(options.corpus), random.Random(options.seed))
    given = len(search.lines)
    end = time.monotonic() + options.seconds  # noqa: TID251 — a tool's own budget
    while time.monotonic() < end:  # noqa: TID251
        search.once()
    print(  # noqa: T201
        f"{search.runs} sequences, {len(search.found)} kept, "
        f"{len(search.lines)} lines executed ({given} by the corpus alone)"
    )
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        for index, steps in enumerate(search.found):
            text = "".join(f"{step}\n" for step in steps)
            (options.keep / f"found-{options.seed}-{index:04}.txt").write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
