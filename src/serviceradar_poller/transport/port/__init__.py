"""
The poller's own gRPC port, below what it serves: sockets, HTTP/2 on grpclib's protocol, calls, and every limit.

Whoever reaches the port is a stranger; what a stranger may cost is named in ``limits``.
"""
