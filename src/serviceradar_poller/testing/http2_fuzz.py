"""
Fuzz the HTTP/2 client: play mutants of a corpus, and keep those that execute something new.

    python -m serviceradar_poller.testing.http2_fuzz CORPUS --seconds 60 --seed 1
    python -m serviceradar_poller.testing.http2_fuzz CORPUS --channel

The first drives the session alone, thousands of sequences a minute; the second lets a whole channel with calls under
way meet what the sequences have the peer send, on virtual time.

What was found is written in any case. A sequence that fails ends the search: it is written as failed-*.txt, which can
be put into the corpus as it is, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random  # noqa: TID251 — seeded by the caller
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from serviceradar_poller import transport
from serviceradar_poller.testing import hostile
from serviceradar_poller.testing.http2_play import Step, load
from serviceradar_poller.testing.http2_search import Search


def main(arguments: Sequence[str] | None = None) -> int:
    """Search for a while; write what was found."""
    parser = argparse.ArgumentParser(prog="http2_fuzz", description=__doc__.partition("\n\n")[0].strip())
    parser.add_argument("corpus", type=Path, help="folder of sequences, *.txt")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--channel", action="store_true", help="play against a whole channel")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for finds and failures")
    options = parser.parse_args(arguments)
    corpus, chance = load(options.corpus), random.Random(options.seed)
    if options.channel:
        search = Search(corpus, chance, player=hostile.play, folder=Path(transport.__file__).parent)
    else:
        search = Search(corpus, chance)
    given = failed = 0
    try:
        search.begin()
        given = len(search.lines)
        end = time.monotonic() + options.seconds  # noqa: TID251 — a tool's own budget
        while time.monotonic() < end:  # noqa: TID251
            search.once()
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 — whatever it is, its sequence is what was looked for
        traceback.print_exception(error)
        failed = 1
        text = "".join(f"{line}\n" for line in (f"# {_name(error)}", *error.__notes__[-1:]))
        print(f"a failure, kept in {_write(options.keep, f'failed-{options.seed}-{search.runs:06}', text)}")  # noqa: T201
    for index, steps in enumerate(search.found):
        _write(options.keep, f"found-{options.seed}-{index:04}", _text(steps))
    print(  # noqa: T201
        f"{search.runs} sequences, {len(search.found)} kept{f' in {options.keep}' if search.found else ''}, "
        f"{len(search.lines)} lines executed ({given} by the corpus alone)"
    )
    return failed


def _text(steps: Sequence[Step]) -> str:
    return "".join(f"{step}\n" for step in steps)


def _name(error: Exception) -> str:
    """Say in one line of ASCII what failed."""
    words = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return words.encode("ascii", "replace").decode()


def _write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.txt"
    path.write_text(text, encoding="ascii")
    return path


if __name__ == "__main__":
    sys.exit(main())
