"""A receiver of webhooks: a real server on a port of its own, which keeps what comes and answers as it is told."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request. headers: by lower-case name."""

    line: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """answers: a whole HTTP answer for each call, the last for all that follow; b"" is none at all, ever."""

    host: str = ""
    answers: list[bytes] = field(default_factory=lambda: [status(204)])
    calls: list[Call] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://{self.host}/hook?token=of-mine"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
            self.calls.append(Call(line, headers, await reader.readexactly(int(headers["content-length"]))))
            answer = self.answers[min(len(self.calls), len(self.answers)) - 1]
            self.came.set()
            writer.write(answer)
            await writer.drain()
            if not answer or answer.endswith(b"..."):
                await reader.read()  # until the caller goes
        finally:
            writer.close()


def status(code: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {code} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    one = Receiver()
    server = await asyncio.start_server(one.handle, "127.0.0.1", 0, ssl=tls)
    one.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()
