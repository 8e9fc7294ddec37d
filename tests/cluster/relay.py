"""Connects sockets across network namespaces: a Unix socket in a folder is seen from all of them.

    python -m tests.cluster.relay unix:/folder/service.sock=tcp:8000

listens on the first and connects to the second, for each pair; ports are the loopback's.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

_CHUNK = 1 << 16

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(pairs: list[str]) -> None:
    """Serve all pairs until cancelled."""
    async with asyncio.TaskGroup() as group:
        for pair in pairs:
            listen, _, connect = pair.partition("=")
            server = await _listening(listen, _connector(connect))
            group.create_task(server.serve_forever())


async def _listening(
    address: str, callback: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> asyncio.Server:
    kind, _, place = address.partition(":")
    if kind == "tcp":
        return await asyncio.start_server(callback, "127.0.0.1", int(place))
    return await asyncio.start_unix_server(callback, place)


def _connector(address: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    kind, _, place = address.partition(":")

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            opened: Streams = await (
                asyncio.open_connection("127.0.0.1", int(place))
                if kind == "tcp"
                else asyncio.open_unix_connection(place)
            )
        except OSError:  # nobody listens there: the caller sees its connection end
            writer.close()
            return
        await asyncio.gather(_pump(reader, opened[1]), _pump(opened[0], writer))

    return on_connection


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:  # one side broke: the other learns it by the end of its own
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1:]))
