"""What a user of the lab may catch."""

from serviceradar_poller.errors import PollerError


class LabError(PollerError):
    """The lab can't do what it was asked to."""


class FaultError(LabError):
    """A fault or its target can't be understood."""
