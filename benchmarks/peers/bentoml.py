"""diffusers behind BentoML, with its adaptive batching: max_batch_size 8, all else as it comes (time-outs of 60 s)."""

import base64

import httpx

from benchmarks.peers.contender import APPS, ROOT, Contender, PictureClient, Place
from benchmarks.peers.requests import DEMO
from benchmarks.service_requests import ImageRequest


async def _send(http: httpx.AsyncClient, request: ImageRequest) -> httpx.Response:
    return await http.post("/draw", json={"requests": [request.model_dump()]})


def _picture(answer: httpx.Response) -> bytes:
    [picture] = answer.json()
    return base64.b64decode(picture)


def _command(place: Place) -> list[str]:
    service = f"{APPS}.bentoml:Diffusion"
    options = ["--working-dir", str(ROOT), "--host", "127.0.0.1", "--port", str(place.port)]
    return [str(place.bin / "bentoml"), "serve", service, *options]


BENTOML = Contender(
    name="bentoml",
    what="diffusers behind BentoML, adaptive batches of up to 8",
    checkpoint="demo",
    like=DEMO,
    command=_command,
    client=lambda http: PictureClient(http, _send, _picture),
    health="/readyz",
    packages=("bentoml==1.4.40",),
    environment={"BENTOML_DO_NOT_TRACK": "True"},
)
