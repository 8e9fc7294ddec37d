"""The floor: diffusers' own pipeline behind the thinnest server, one picture after the other."""

import httpx

from benchmarks.peers.contender import APPS, Checkpoint, Contender, PictureClient, Place
from benchmarks.peers.requests import DEMO, REAL
from benchmarks.service_requests import ImageRequest


async def send(http: httpx.AsyncClient, request: ImageRequest) -> httpx.Response:
    """Ask the thinnest server (servers/one_by_one.py)."""
    return await http.post("/", json=request.model_dump())


def _command(place: Place) -> list[str]:
    return [str(place.bin / "python"), "-m", f"{APPS}.bare", str(place.checkpoint), str(place.port)]


def bare(name: str, checkpoint: Checkpoint) -> Contender:
    """The bare pipeline of a checkpoint."""
    return Contender(
        name=name,
        what="diffusers' pipeline, one call after the other",
        checkpoint=checkpoint,
        like=REAL if checkpoint == "real" else DEMO,
        command=_command,
        client=lambda http: PictureClient(http, send),
        health="/",
    )
