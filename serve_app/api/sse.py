"""Server-sent events as responses, a bounded number at a time. Knows nothing of what the events say."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.errors import TooManyStreams


class EventStreams:
    """The event streams of one process; `at_most` are open at once."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._open = 0

    def open(self, events: AsyncGenerator[bytes, None]) -> StreamingResponse:
        """A response that sends `events`; they are closed when it ends, however it does. Raises TooManyStreams."""
        if self._open >= self._at_most:
            raise TooManyStreams(f"{self._open} event streams are open, no more are allowed")
        self._open += 1
        return _EventStream(events, self._closed)

    def _closed(self) -> None:
        self._open -= 1


class _EventStream(StreamingResponse):
    def __init__(self, events: AsyncGenerator[bytes, None], closed: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self._closed()
