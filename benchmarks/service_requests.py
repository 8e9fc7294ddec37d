"""What services are asked for: prompts of the demo world, each once, so that no cache helps anybody."""

import itertools
import random
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
_SIZES = ("large", "small")


class ImageRequest(BaseModel):
    """One image. sampler: a canonical name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    sampler: str


def prompts(seed: int) -> Iterator[str]:
    """Prompts without end; no two of the first ten thousand or so are the same."""
    pictures = list(itertools.product(_SIZES, _COLOURS, _SHAPES, _SIZES, _COLOURS, _SHAPES, _COLOURS))
    draw = random.Random(seed)
    draw.shuffle(pictures)
    for size, colour, shape, other_size, other_colour, other_shape, background in itertools.cycle(pictures):
        if len({colour, other_colour, background}) == 3:
            yield (
                f"a {size} {colour} {shape} and a {other_size} {other_colour} {other_shape} "
                f"on a {background} background"
            )


def requests(like: ImageRequest, seed: int) -> Iterator[ImageRequest]:
    """Requests like this one, each with a prompt and a seed of its own."""
    for number, prompt in enumerate(prompts(seed)):
        yield like.model_copy(update={"prompt": prompt, "seed": seed * 100_000 + number})
