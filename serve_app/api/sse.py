"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) as a response."""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.errors import TooManyStreams

# what a stream sends when there is nothing new
KEEP_ALIVE = KEEPALIVE_COMMENT


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """An event with JSON data."""
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False, allow_nan=False))


class EventStream(StreamingResponse):
    """Sends `events`, which are closed when the response ends, however it does."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


class OpenStreams:
    """Counts the event streams that are open, of which there may be `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """One more for the length of the block. Raises TooManyStreams."""
        if self._open >= self._most:
            raise TooManyStreams(f"{self._open} event streams are open, no more are allowed")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
