"""What a stage begins with: nothing, all that was left, or a larger picture."""

import numpy as np
import pytest

from deployments.engine.types import DenoiseResult, StageTimings
from serve_app.planning.plan import DenoiseStage
from serve_app.schemas.resolved_generation import HiresInput
from serve_app.stages.stage_input import Beginning, beginning
from tests.serve_app.images.pictures import gradient

LATENTS = np.ones((4, 8, 8), np.float32)
STATE = np.arange(16, dtype=np.uint8)


def left(**what: object) -> DenoiseResult:
    bare = DenoiseResult("lane", 1, "sd15", "0" * 64, "best-effort", StageTimings(0.0, 0.0, 0.0, 0.0), "cpu", "float32")
    return DenoiseResult(**{name: getattr(bare, name) for name in DenoiseResult.__slots__} | what)


def second_pass(upscaler: str) -> DenoiseStage:
    hires = HiresInput.model_validate(
        {"width": 96, "height": 64, "upscaler": upscaler, "strength": 0.5, "steps": 20, "sampler": "ddim"}
    )
    return DenoiseStage("sd15", "sd15", strength=0.5, hires=hires)


def test_the_first_stage_begins_with_nothing() -> None:
    assert beginning(DenoiseStage("sd15", "sd15"), None) == Beginning(None, None)


def test_a_refiner_goes_on_with_the_random_numbers() -> None:
    given, image = beginning(
        DenoiseStage("sdxl_refiner", "refiner", denoising_start=0.8), left(latents=LATENTS, generator_state=STATE)
    )
    assert given is not None
    assert (given.latents is LATENTS, given.generator_state is STATE, image) == (True, True, None)


def test_a_second_pass_over_latents_draws_its_noise_anew() -> None:
    given, image = beginning(second_pass("latent"), left(latents=LATENTS, generator_state=STATE))
    assert given is not None
    assert (given.latents is LATENTS, given.generator_state, image) == (True, None, None)


@pytest.mark.parametrize("upscaler", ["lanczos", "nearest"])
def test_a_second_pass_over_pixels_has_them_at_its_size(upscaler: str) -> None:
    picture = gradient(48, 32)
    given, image = beginning(second_pass(upscaler), left(image=picture))
    assert given is None
    assert image is not None
    assert (image.shape, image.dtype) == ((64, 96, 3), np.uint8)
    assert np.array_equal(image[::2, ::2], picture) == (upscaler == "nearest")
    assert np.abs(image[::2, ::2].astype(int) - picture).max() < 24
