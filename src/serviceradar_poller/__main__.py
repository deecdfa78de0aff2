"""Run the program as ``python -m serviceradar_poller``."""

from serviceradar_poller.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
