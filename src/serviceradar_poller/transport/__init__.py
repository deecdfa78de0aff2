"""
gRPC to agents and core, TLS, name resolution, and the poller's own gRPC server.

gRPC's core reads some settings once, from the environment, when it is loaded; they are set here, before
anything in this package imports it. A value that an operator has set stays.

- ``GRPC_VERBOSITY``: the core would print every failed handshake to stderr; callers get CallError.
- ``GRPC_SSL_CIPHER_SUITES``: grpcio has no option for the lowest TLS version. The list holds the ciphers of
  TLS 1.2 only (those of 1.3 are always on); its one entry needs a pre-shared key, which never exists here, so
  that no handshake of TLS 1.2 can succeed: TLS 1.3 is the minimum. The poller's own server is not gRPC's.
"""

import os
import sys

#: False when gRPC was loaded before this package: then a peer that lacks TLS 1.3 gets TLS 1.2.
TLS13_ENFORCED = "grpc._cython.cygrpc" not in sys.modules or "GRPC_SSL_CIPHER_SUITES" in os.environ

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-AES128-CBC-SHA")
