"""Ray Serve as in its public example of Stable Diffusion, an ingress before a model; and the same with @serve.batch.

`serve run CONFIG`, with `benchmarks.peers.servers.ray_serve:plain` or `...:batched` as the import path.
"""

import os
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from PIL import Image
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.peers.servers.picture import Request, png
from benchmarks.peers.servers.pipeline import Pipeline

app = FastAPI()


class Picture(BaseModel):
    """The query of GET /imagine."""

    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    sampler: str


@serve.ingress(app)
class Ingress:
    """HTTP before the model."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model = model

    @app.get("/health")
    async def health(self) -> str:
        """Whether the model can draw."""
        await self._model.loaded.remote()
        return "ready"

    @app.get("/imagine", response_class=Response)
    async def imagine(self, picture: Annotated[Picture, Query()]) -> Response:
        """A picture."""
        drawn = await self._model.generate.remote(picture.model_dump())
        return Response(png(drawn), media_type="image/png")


class Loaded:
    """The pipeline in a replica."""

    def __init__(self) -> None:
        self._pipeline = Pipeline(os.environ["PEERS_CHECKPOINT"])

    def loaded(self) -> bool:
        """True, as soon as there is somebody to say so."""
        return True


class Model(Loaded):
    """One call for each request."""

    def generate(self, request: Request) -> Image.Image:
        """A picture."""
        return self._pipeline.draw([request])[0]


class BatchedModel(Loaded):
    """One call for a batch."""

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.05)
    async def generate(self, requests: list[Request]) -> list[Image.Image]:
        """The pictures of a batch."""
        return self._pipeline.draw(requests)


_ingress = serve.deployment(Ingress)
# one at a time: Ray calls a synchronous method in threads, and a pipeline isn't for several. With the example's default
# of five, all but three of 24 concurrent requests were answered by 500
plain = _ingress.bind(serve.deployment(max_ongoing_requests=1)(Model).bind())
# a replica is given no more than this at once: with the default, batches would stay at 5
batched = _ingress.bind(serve.deployment(max_ongoing_requests=16)(BatchedModel).bind())
