"""The engine against diffusers' own pipelines on the demo models: every sampler among unlike lanes, some alone.

The reference is what a diffusers user would write: one pipeline call, the scheduler swapped by `from_config`. Pictures
to begin with, and every sampler alone, are `test_image_parity`'s; every sampler on every part of a schedule is that of
`samplers/test_tables`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from tests.deployments.engine.denoising.parity import assert_close, encode, reference, seeded
from tests.deployments.engine.samplers.diffusers_schedulers import SCHEDULERS

Work = tuple[DenoiseRequest, Conditioning]
RunTogether = Callable[[Engine, list[Work]], list[DenoiseResult]]

DEMO_MODELS = Path(__file__).parents[4] / "demo_models"
SIZE = 128  # the smallest that the demo models are served at
LANES = 8
STEPS = (6, 5, 8, 5)  # every sampler has a step after 0.8 of them
GUIDANCE = (7.5, 1.0, 3.0, 10.0)
SWITCH_AT = (0.8, 0.5)
# one without a past, one with noise, one with a past, one of second order
ALONE = ("ddim", "euler_a", "dpmpp_2m", "heun")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(DEMO_MODELS / "demo-sd15")),
        "sdxl": CheckpointSpec(family="sdxl", source=str(DEMO_MODELS / "demo-sdxl")),
        "refiner": CheckpointSpec(family="sdxl-refiner", source=str(DEMO_MODELS / "demo-sdxl-refiner")),
    }
    settings = EngineSettings(
        device="cpu",
        dtype="float32",
        cpu_threads=1,
        resident_checkpoints=len(catalogue),
        max_rows=2 * LANES,
        reproducible_rows=2 * LANES,
    )
    engine = Engine(settings, catalogue)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def sd15() -> Any:
    return pipeline(
        StableDiffusionPipeline, "demo-sd15", feature_extractor=None, safety_checker=None, requires_safety_checker=False
    )


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return pipeline(StableDiffusionXLPipeline, "demo-sdxl", add_watermarker=False)


@pytest.fixture(scope="module")
def refiner() -> Any:
    return pipeline(StableDiffusionXLImg2ImgPipeline, "demo-sdxl-refiner", add_watermarker=False)


def pipeline(pipeline_class: Any, name: str, **options: Any) -> Any:
    """Loaded by diffusers, in float32 as the engine is."""
    loaded = pipeline_class.from_pretrained(DEMO_MODELS / name, dtype=torch.float32, **options)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def requests_for(checkpoint: str, **changes: Any) -> list[DenoiseRequest]:
    """A lane for every sampler, unlike in everything that lanes may differ in."""
    return [
        DenoiseRequest(
            lane_id=sampler,
            checkpoint=checkpoint,
            seed=1000 + index,
            steps=STEPS[index % len(STEPS)],
            guidance_scale=GUIDANCE[index // 2 % len(GUIDANCE)],
            width=SIZE,
            height=SIZE,
            sampler=sampler,
            output="latents",
            **changes,
        )
        for index, sampler in enumerate(SCHEDULERS)
    ]


def some_alone_and_all_together(engine: Engine, run_together: RunTogether, work: list[Work]) -> list[DenoiseResult]:
    """Lanes by themselves, then all at once, pinned to a bucket with room for LANES lanes with guidance.

    In a free one the engine might find that smaller batches serve more on this machine.
    """
    alone = [run_together(engine, [item])[0] for item in work if item[0].sampler in ALONE]
    assert len(alone) == len(ALONE)
    before = engine.stats()
    together = run_together(engine, [(dataclasses.replace(request, reproducible=True), text) for request, text in work])
    after = engine.stats()
    steps, lane_steps = after.steps_total - before.steps_total, after.lane_steps_total - before.lane_steps_total
    assert lane_steps / steps > 4, "the lanes did not share their steps"  # the last ones to end have fewer beside them
    return alone + together


def test_txt2img(engine: Engine, run_together: RunTogether, sd15: Any) -> None:
    requests = requests_for("sd15")
    expected = {
        request.lane_id: reference(sd15, request, seeded(request), height=SIZE, width=SIZE) for request in requests
    }
    work = [(request, encode(sd15, request)) for request in requests]
    assert_close(some_alone_and_all_together(engine, run_together, work), expected)


def test_composed_of_itself_it_is_the_prompt_alone(engine: Engine, run_together: RunTogether, sdxl: Any) -> None:
    """With pooled texts and zeros for an empty negative prompt; test_guidance_parity.py has unlike prompts."""
    plain = dataclasses.replace(requests_for("sdxl")[0], guidance_scale=5.0, steps=4)
    text = encode(sdxl, plain)
    composed = dataclasses.replace(plain, lane_id="composed", composed_prompts=2)
    twice = dataclasses.replace(text, composed=(text.positive,), weights=(0.25, 0.75))
    (alone,) = run_together(engine, [(plain, text)])
    (result,) = run_together(engine, [(composed, twice)])
    assert alone.latents is not None
    assert_close([result], {"composed": torch.from_numpy(alone.latents)})


def test_base_and_refiner(engine: Engine, run_together: RunTogether, sdxl: Any, refiner: Any) -> None:
    """One generator through both stages, as a diffusers user passes it; one encoding for both, as Darkroom does."""
    requests = [
        dataclasses.replace(request, denoising_end=SWITCH_AT[number % len(SWITCH_AT)])
        for number, request in enumerate(requests_for("sdxl"))
    ]
    of_base: dict[str, torch.Tensor] = {}
    of_refiner: dict[str, torch.Tensor] = {}
    for request in requests:
        generator, switch_at = seeded(request), request.denoising_end
        latents = reference(sdxl, request, generator, height=SIZE, width=SIZE, denoising_end=switch_at)
        of_base[request.lane_id] = latents
        of_refiner[request.lane_id] = reference(
            refiner, request, generator, image=latents[None], denoising_start=switch_at
        )
    texts = [encode(sdxl, request) for request in requests]
    results = some_alone_and_all_together(engine, run_together, list(zip(requests, texts, strict=True)))
    assert_close(results, of_base)
    handed_over = [
        dataclasses.replace(
            request,
            checkpoint="refiner",
            denoising_start=request.denoising_end,
            denoising_end=1.0,
            latents=result.latents,
            generator_state=result.generator_state,
        )
        for request, result in zip(requests, results[-len(requests) :], strict=True)
    ]
    refined = some_alone_and_all_together(engine, run_together, list(zip(handed_over, texts, strict=True)))
    assert_close(refined, of_refiner)
