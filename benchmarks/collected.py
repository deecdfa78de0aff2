"""
Run the poller so that it collects its garbage when it is told to: SIGUSR1.

What Python has allocated is what is alive, what only the collector of cycles will find, and what free lists keep to be
used again: tens of thousands of blocks that come and go by chance. A collection leaves what is alive.
"""

from __future__ import annotations

import gc
import signal
import sys

from serviceradar_poller import cli

PROGRAM = ("-m", "benchmarks.collected")


def main() -> int:
    """Run the poller with the arguments."""
    signal.signal(signal.SIGUSR1, lambda *_: gc.collect())
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
