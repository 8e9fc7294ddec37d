"""A diffusers pipeline and the pictures of a batch of requests: what all of these servers serve.

Imports torch and diffusers alone, which every contender's environment has.
"""

import os
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from PIL import Image

from benchmarks.peers.servers.picture import Request

_SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
_SHARED = ("width", "height", "steps", "guidance_scale", "sampler")


class Pipeline:
    """A diffusers pipeline. float16 on a GPU; on a CPU float32, in which it is fastest where fp16 isn't native."""

    def __init__(self, checkpoint: str) -> None:
        """Load the diffusers folder."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # all processors, as Darkroom takes them: Ray and others hand down a smaller OMP_NUM_THREADS
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        diffusers.logging.set_verbosity_error()
        self._pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(
            checkpoint,
            dtype=torch.float16 if device == "cuda" else torch.float32,
            safety_checker=None,
            requires_safety_checker=False,
        ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)

    def draw(self, requests: Sequence[Request]) -> list[Image.Image]:
        """The requests' pictures, in their order. A call draws one kind: one size, one sampler and so on."""
        pictures: dict[int, Image.Image] = {}
        for numbers in groups(requests):
            drawn = self._call([requests[number] for number in numbers])
            pictures |= dict(zip(numbers, drawn, strict=True))
        return [pictures[number] for number in range(len(requests))]

    def _call(self, requests: Sequence[Request]) -> list[Image.Image]:
        like = requests[0]
        scheduler = getattr(diffusers, _SCHEDULERS[like["sampler"]])
        self._pipeline.scheduler = scheduler.from_config(self._pipeline.scheduler.config)
        drawn: list[Image.Image] = self._pipeline(
            [request["prompt"] for request in requests],
            num_inference_steps=like["steps"],
            guidance_scale=like["guidance_scale"],
            width=like["width"],
            height=like["height"],
            generator=[torch.Generator("cpu").manual_seed(request["seed"]) for request in requests],
        ).images
        return drawn


def groups(requests: Sequence[Request]) -> list[list[int]]:
    """The numbers of those requests that one call of the pipeline can draw, in the order of their first ones."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for number, request in enumerate(requests):
        kinds.setdefault(tuple(request[name] for name in _SHARED), []).append(number)
    return list(kinds.values())
