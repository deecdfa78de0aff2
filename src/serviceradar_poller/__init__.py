"""A fault-tolerant monitoring poller for ServiceRadar."""

#: The build reads it here: looking it up in the installed metadata costs a running poller 3 MiB.
__version__ = "0.1.0"
