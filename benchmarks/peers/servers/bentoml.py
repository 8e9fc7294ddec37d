"""BentoML with its adaptive batching: `bentoml serve benchmarks.peers.servers.bentoml:Diffusion`."""

import base64
import os
from typing import Any

import bentoml

from benchmarks.peers.servers.picture import png
from benchmarks.peers.servers.pipeline import Pipeline


@bentoml.service
class Diffusion:
    """A pipeline that draws whole batches."""

    def __init__(self) -> None:
        self._pipeline = Pipeline(os.environ["PEERS_CHECKPOINT"])

    @bentoml.api(batchable=True, max_batch_size=8)
    def draw(self, requests: list[dict[str, Any]]) -> list[str]:
        """The pictures of a batch, which BentoML makes of the lists of single calls; PNG files in base64."""
        return [base64.b64encode(png(picture)).decode() for picture in self._pipeline.draw(requests)]
