"""Run the lab alone: ``python -m serviceradar_poller.lab agents|core|certs``."""

import argparse
import sys

from serviceradar_poller.lab.cli import add_commands

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="serviceradar-poller lab")
    add_commands(parser.add_subparsers(required=True))
    arguments = parser.parse_args()
    sys.exit(arguments.func(arguments))
