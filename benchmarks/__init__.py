"""Measurements of what the poller costs and how fast it is, each against a reference in the same run."""
