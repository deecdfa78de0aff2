"""The messages that agents, poller and core exchange, and their encoding. No loop, clock, file or socket."""
