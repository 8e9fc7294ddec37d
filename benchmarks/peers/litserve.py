"""diffusers behind LitServe, with its batching: max_batch_size 8, all else as it comes (time-outs of 30 s)."""

import httpx

from benchmarks.peers.contender import APPS, Contender, PictureClient, Place
from benchmarks.peers.requests import DEMO
from benchmarks.service_requests import ImageRequest


async def _send(http: httpx.AsyncClient, request: ImageRequest) -> httpx.Response:
    return await http.post("/predict", json=request.model_dump())


def _command(place: Place) -> list[str]:
    return [str(place.bin / "python"), "-m", f"{APPS}.litserve", str(place.checkpoint), str(place.port)]


LITSERVE = Contender(
    name="litserve",
    what="diffusers behind LitServe, batches of up to 8",
    checkpoint="demo",
    like=DEMO,
    command=_command,
    client=lambda http: PictureClient(http, _send),
    packages=("litserve==0.2.19",),
)
