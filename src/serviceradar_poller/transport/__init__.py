"""gRPC to agents and core, TLS, name resolution, and the poller's own gRPC server."""
