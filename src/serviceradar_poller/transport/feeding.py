"""Send a call's stream of messages, in a task of its own: the call may end while the next message is being made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable


class Feed:
    """
    Messages on their way from whoever makes them into a call.

    Args:
        payloads: Closed at the end, however that comes, when it is a generator.
        send: Sends a message, given with its number from 1 on; False when the call takes no more.
        finish: Called after the last.

    Attributes:
        sent_count: How many were sent.
        task: Ends when all is sent, the call takes no more, or making a message fails.
    """

    __slots__ = ("_failure", "sent_count", "task")

    def __init__(
        self,
        payloads: AsyncIterable[bytes],
        send: Callable[[bytes, int], Awaitable[bool]],
        finish: Callable[[], Awaitable[None]],
    ) -> None:
        self.sent_count = 0
        self._failure: BaseException | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(payloads, send, finish), name="feed")

    @property
    def failed(self) -> bool:
        """Whether making a message failed."""
        return self._failure is not None

    async def stop(self) -> None:
        """Make no further message, and return when nothing of it runs any more."""
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait({self.task})

    def check(self) -> None:
        """Raise what making a message raised."""
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback would hold this frame

    async def _run(
        self,
        payloads: AsyncIterable[bytes],
        send: Callable[[bytes, int], Awaitable[bool]],
        finish: Callable[[], Awaitable[None]],
    ) -> None:
        iterator = aiter(payloads)
        try:
            async for payload in iterator:
                if not await send(payload, self.sent_count + 1):
                    return
                self.sent_count += 1
            await finish()
        except asyncio.CancelledError:
            pass  # by stop(), or with the call
        except Exception as error:  # noqa: BLE001 (handed to the caller)
            self._failure = error
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
