"""A network between a client and a Postgres server that may lose the answer to a COMMIT."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.serve_app.postgres import Postgres


@dataclass
class Network:
    """Passes on what comes, until `loses`.

    Attributes:
        port: to connect to.
        loses: a part of a statement's text; of the first transaction with it the answer to COMMIT is lost.
        lost: set when that has happened: the server has committed, and the connection is gone.
    """

    port: int = 0
    loses: bytes | None = None
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server_port: int) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server_port)
        answers = asyncio.create_task(_pass_on(server_reader, writer))
        chosen = False
        try:
            while data := await reader.read(1 << 16):
                chosen = chosen or (self.loses is not None and self.loses in data)
                if chosen and b"COMMIT" in data:
                    self.loses = None
                    answers.cancel()
                    await asyncio.wait([answers])
                    server_writer.write(data)
                    assert await server_reader.read(1 << 16)  # it is committed
                    self.lost.set()
                    break
                server_writer.write(data)
        finally:
            answers.cancel()
            writer.close()
            server_writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def network_to(postgres: Postgres) -> AsyncIterator[Network]:
    """A network whose far end is a server."""
    network = Network()
    open_ones: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(asyncio.create_task(network.connect(reader, writer, postgres.port)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    network.port = server.sockets[0].getsockname()[1]
    try:
        yield network
    finally:
        server.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
