"""
Our own gRPC client transport: asyncio, TLS in memory, and the HTTP/2 session of ``transport.http2``.

    NativeChannel ── dials, one attempt for all ──► Connection ◄── bytes ──► socket
      deadlines, policy                              TlsClient ◄──► Session

What belongs here: sockets, timers, tasks, and the words for what went wrong. What does not: frames and gRPC's framing
(``http2``), messages (``clients``), and when to try a peer again (``agents``).
"""
