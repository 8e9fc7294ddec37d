"""LitServe with its batching: `python -m benchmarks.peers.servers.litserve CHECKPOINT PORT`."""

import sys

import litserve
from fastapi import Response
from PIL import Image

from benchmarks.peers.servers.picture import Request, png
from benchmarks.peers.servers.pipeline import Pipeline


class Diffusion(litserve.LitAPI):
    """A pipeline that draws whole batches."""

    def setup(self, device: str) -> None:
        """Load the pipeline, once in the worker."""
        self._pipeline = Pipeline(sys.argv[1])

    def predict(self, x: list[Request]) -> list[Image.Image]:
        """The pictures of a batch."""
        return self._pipeline.draw(x)

    def encode_response(self, output: Image.Image) -> Response:
        """The picture's file."""
        return Response(content=png(output), media_type="image/png")


if __name__ == "__main__":
    litserve.LitServer(Diffusion(max_batch_size=8, batch_timeout=0.05), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False
    )
