"""Where a suspended task is, as text."""

from __future__ import annotations

import asyncio
import io
from typing import Any


def stack_of(task: asyncio.Task[Any]) -> str:
    """Say where *task* is now, from its first coroutine to the innermost, as text."""
    out = io.StringIO()
    out.write(f"{task.get_name()}\n")
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            out.write(f"  awaits {type(awaited).__name__}\n")
            break
        code = frame.f_code
        out.write(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}\n')
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return out.getvalue()
