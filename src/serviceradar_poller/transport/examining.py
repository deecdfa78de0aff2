"""
The short-lived process that judges certificate files: reads a request on stdin, writes the answer to stdout, ends.

`transport.examiner` starts it. It has the files' names from its caller and reads the files itself.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from serviceradar_poller.config.model import SecurityConfig, SecurityMode
from serviceradar_poller.transport.certificates import examine
from serviceradar_poller.transport.examination import decode_request, encode_answer

#: File names of a few hundred blocks are far from it.
REQUEST_BYTES_MAX: Final = 8 * 1024 * 1024
#: Of linux/prctl.h.
PR_SET_DUMPABLE: Final = 4
#: As for a command line that can't be understood.
EXIT_REQUEST: Final = 2


def main() -> int:
    """Answer one request and return the exit code."""
    _hide()
    data = sys.stdin.buffer.read(REQUEST_BYTES_MAX + 1)
    try:
        if len(data) > REQUEST_BYTES_MAX:
            raise ValueError(f"more than {REQUEST_BYTES_MAX} bytes")
        request = decode_request(data)
    except ValueError as error:
        sys.stderr.write(f"unusable request: {error}\n")
        return EXIT_REQUEST
    results = [examine(SecurityConfig(mode=SecurityMode.MTLS, tls=tls), now=request.now) for tls in request.blocks]
    sys.stdout.buffer.write(encode_answer(results))
    return 0


def _hide() -> None:
    """
    Keep the keys that this process reads from core dumps, and from others of the same user.

    A limit of 0 for core files would not: where the kernel pipes them to a program it does not look at the limit.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


if __name__ == "__main__":
    raise SystemExit(main())
