"""What a contender is: what it is installed from, how it is started, how it is asked for a picture."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from benchmarks.http_clients import Answer, ImageClient
from benchmarks.servers import Server, free_port, server
from benchmarks.service_requests import ImageRequest

ROOT = Path(__file__).resolve().parents[2]
APPS = "benchmarks.peers.servers"

Checkpoint = Literal["demo", "real", "own"]
"""demo: the trained miniature demo-sd15. real: SD1.5's architecture with random weights. own: a running service's."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender is started.

    Attributes:
        bin: the scripts of its environment.
        port: that it shall listen on.
        checkpoint: a diffusers folder.
        folder: for what it writes.
    """

    bin: Path
    port: int
    checkpoint: Path
    folder: Path


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that draws pictures.

    Attributes:
        name: on the command line and in tables.
        what: one line for people.
        checkpoint: that it draws with.
        command: that starts it, as its documentation has it; None for a service that runs already.
        client: that asks it over HTTP.
        like: what it is asked for.
        health: a path that answers 200 when it can draw.
        packages: of its own environment; empty where Darkroom's has all it needs.
        environment: variables of its process.
        url: of a service that runs already.
    """

    name: str
    what: str
    checkpoint: Checkpoint
    command: Callable[[Place], list[str]] | None
    client: Callable[[httpx.AsyncClient], ImageClient]
    like: ImageRequest
    health: str = "/health"
    packages: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""

    @contextmanager
    def started(self, scripts: Path, checkpoint: Path, folder: Path, log: Path) -> Iterator[tuple[Server | None, str]]:
        """Its process, if it isn't running already, and its address, for the length of the block.

        Args:
            scripts: of its environment.
            checkpoint: a diffusers folder.
            folder: that it is started in.
            log: what it says goes there.
        """
        if self.command is None:
            yield None, self.url
            return
        place = Place(scripts, free_port(), checkpoint, folder)
        variables = {"PEERS_CHECKPOINT": str(checkpoint), "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)}
        with server(self.command(place), log, folder, variables | self.environment) as process:
            yield process, f"http://127.0.0.1:{place.port}"


class PictureClient:
    """A server whose answer to a request is the picture."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        send: Callable[[httpx.AsyncClient, ImageRequest], Awaitable[httpx.Response]],
        picture: Callable[[httpx.Response], bytes] = lambda answer: answer.content,
    ) -> None:
        """Create the client.

        Args:
            http: for the server's address.
            send: sends a request in the server's words.
            picture: the file in an answer.
        """
        self._http = http
        self._send = send
        self._picture = picture

    async def generate(self, request: ImageRequest) -> Answer:
        """See ImageClient."""
        try:
            answer = await self._send(self._http, request)
        except httpx.HTTPError as error:
            return Answer("failed", reason=repr(error))
        if answer.status_code in (429, 503):
            return Answer("refused", reason=answer.text[:200])
        if answer.status_code != 200:
            return Answer("failed", reason=f"{answer.status_code} {answer.text[:200]}")
        return Answer("done", self._picture(answer))
