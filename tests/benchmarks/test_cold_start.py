"""A service on its way to the first image: everything that changes is told once, in its order."""

import httpx
import pytest

from benchmarks.cold_start import NoImage, events
from benchmarks.service_requests import ImageRequest

REQUEST = ImageRequest(prompt="", seed=0, steps=5, guidance_scale=5.0, width=256, height=256, sampler="euler")
STARTING = {"state": "starting", "reason": "no node yet"}
LOADING = {"state": "starting", "reason": "loading its checkpoints"}
READY = {"state": "ready", "reason": None}


class Waking:
    """Answers GET /ready by a script, and a request with an image's address or with `refusal`."""

    def __init__(self, *script: dict[str, dict[str, str | None]] | None, refusal: int | None = None) -> None:
        self._script = iter(script)
        self._refusal = refusal

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/generate":
            done = {"status": "complete", "image_url": "/images/1"}
            return httpx.Response(200, json=done) if self._refusal is None else httpx.Response(self._refusal, text="no")
        if request.url.path == "/images/1":
            return httpx.Response(200, content=b"image")
        stages = next(self._script)
        if stages is None:
            raise httpx.ConnectError("nobody listens yet", request=request)
        ready = all(stage == READY for stage in stages.values())
        return httpx.Response(200 if ready else 503, json={"ready": ready, "stages": stages})


async def told(service: Waking) -> list[str]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(service), base_url="http://service") as http:
        return [event async for event in events(http, REQUEST, "sd15", 30.0)]


async def test_each_change_once() -> None:
    service = Waking(
        None,
        {"SD15": STARTING, "TextEncoder": STARTING},
        {"SD15": STARTING, "TextEncoder": READY},
        {"SD15": LOADING, "TextEncoder": READY},
        {"SD15": READY, "TextEncoder": READY},
    )
    assert await told(service) == [
        "the router answers",
        "SD15: starting: no node yet",
        "TextEncoder: starting: no node yet",
        "TextEncoder: ready",
        "SD15: starting: loading its checkpoints",
        "SD15: ready",
        "ready",
        "the first image (done)",
    ]


async def test_no_image_is_an_error() -> None:
    with pytest.raises(NoImage, match="500 no"):
        await told(Waking({"SD15": READY}, refusal=500))
