"""What the contenders are asked for. Prompts and seeds are each request's own, the same for every contender."""

import random
from collections.abc import Iterator

from benchmarks.service_requests import ImageRequest, requests

DEMO = ImageRequest(prompt="", seed=0, steps=10, guidance_scale=5.0, width=256, height=256, sampler="dpmpp_2m")
REAL = DEMO.model_copy(update={"steps": 2, "sampler": "euler"})

# of each as many as a hundred people of different clients would choose, about
MIXED_SIZES = ((256, 256),) * 5 + ((256, 192), (192, 256)) * 2 + ((320, 320),)
_STEPS = (10, 20, 20, 20, 25, 30)
_SAMPLERS = ("dpmpp_2m",) * 3 + ("euler",) * 2 + ("ddim",)
_GUIDANCE = (3.0, 5.0, 5.0, 7.5)


def mixed(seed: int) -> Iterator[ImageRequest]:
    """Requests that differ in size, steps, sampler and guidance, without end."""
    draw = random.Random(seed)
    for request in requests(DEMO, seed):
        width, height = draw.choice(MIXED_SIZES)
        yield request.model_copy(
            update={
                "width": width,
                "height": height,
                "steps": draw.choice(_STEPS),
                "sampler": draw.choice(_SAMPLERS),
                "guidance_scale": draw.choice(_GUIDANCE),
            }
        )


def alike(like: ImageRequest, seed: int, **changes: int) -> Iterator[ImageRequest]:
    """Requests like this one, but for changes."""
    return requests(like.model_copy(update=changes), seed)
