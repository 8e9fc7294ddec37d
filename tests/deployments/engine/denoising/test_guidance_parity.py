"""What a checkpoint was trained for, schedules and kinds of guidance, against diffusers: alone, among unlike lanes."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline

from deployments.engine.checkpoints.spec import CheckpointSpec, SchedulerSettings
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from tests.deployments.engine.denoising.parity import assert_close, encode, prompts_for, reference, seeded
from tests.deployments.engine.listening import ask

Work = tuple[DenoiseRequest, Conditioning]
RunTogether = Callable[[Engine, list[Work]], list[DenoiseResult]]

SIZE = 64
# what the settings say of a checkpoint; a diffusers user says the same to from_config
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {},
    "zero-snr": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "distilled": {"timestep_spacing": "trailing"},
}


@pytest.fixture(scope="module")
def engine(tiny_sd15: Path, tiny_lcm: Path) -> Iterator[Engine]:
    catalogue = {
        name: CheckpointSpec(family="sd15", source=str(tiny_sd15), scheduler=SchedulerSettings(**config))
        for name, config in CONFIGS.items()
    }
    catalogue["lcm"] = CheckpointSpec(family="sd15", source=str(tiny_lcm))
    settings = EngineSettings(device="cpu", cpu_threads=1, resident_checkpoints=4, reproducible_rows=16)
    engine = Engine(settings, catalogue)
    engine.start()
    yield engine
    engine.stop()


def lane(lane_id: str, sampler: str, **changes: Any) -> DenoiseRequest:
    seed = sum(lane_id.encode())
    return ask(lane_id, **{"sampler": sampler, "seed": seed, "output": "latents", "steps": 5, **changes})


def alone_and_together(engine: Engine, run_together: RunTogether, work: list[Work]) -> list[DenoiseResult]:
    """Each lane by itself, then all at once in one bucket."""
    alone = [run_together(engine, [item])[0] for item in work]
    before = engine.stats()
    together = run_together(engine, [(dataclasses.replace(request, reproducible=True), text) for request, text in work])
    after = engine.stats()
    steps, lane_steps = after.steps_total - before.steps_total, after.lane_steps_total - before.lane_steps_total
    assert lane_steps > 1.5 * steps, "the lanes did not share their steps"
    return alone + together


@contextmanager
def guided_in(unet: Any, steps: range) -> Iterator[None]:
    """diffusers' pipelines guide at each step; outside of `steps` the prompt's output is made the negative's too."""
    evaluation = count()

    def hook(_unet: Any, _inputs: Any, output: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if next(evaluation) in steps:
            return None
        _, positive = output[0].chunk(2)
        return (torch.cat([positive, positive]),)

    handle = unet.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def by_diffusers(pipe: Any, request: DenoiseRequest) -> torch.Tensor:
    span = range(int(request.guidance_start * request.steps), int(request.guidance_end * request.steps))
    with guided_in(pipe.unet, span if request.guidance_scale > 1 else range(request.steps + 1)):
        return reference(
            pipe,
            request,
            seeded(request),
            CONFIGS[request.checkpoint],
            height=SIZE,
            width=SIZE,
            guidance_rescale=request.guidance_rescale,
        )


LANES = {
    "zero-snr": [
        lane("ddim", "ddim"),
        lane("ddim rescaled", "ddim", guidance_rescale=0.7, guidance_scale=9.0),
        lane("euler", "euler", steps=6),
        lane("euler rescaled", "euler", guidance_rescale=1.0),
        lane("unguided", "euler", guidance_scale=1.0),
    ],
    "distilled": [
        lane("turbo in one step", "euler", steps=1, guidance_scale=1.0),
        lane("turbo", "euler", steps=4, guidance_scale=1.0),
        lane("ancestral", "euler_a", steps=4, guidance_scale=1.0),
        lane("lightning", "euler", steps=2, guidance_scale=1.0),
        lane("guided", "dpmpp_2m", steps=4),
    ],
    "sd15": [
        lane("exponential", "dpmpp_2m_exponential"),
        lane("beta", "euler_beta", steps=7),
        lane("karras", "unipc_karras", steps=4),
        lane("trailing", "ddim_trailing"),
        lane("lcm", "lcm", steps=4, guidance_scale=1.5),
        lane("rescaled", "dpmpp_2m_sde_beta", guidance_rescale=0.5),
        lane("first half", "euler_a", guidance_end=0.5, steps=6),
        lane("middle", "dpmpp_2m", guidance_start=0.2, guidance_end=0.7, guidance_rescale=0.3, steps=7),
        lane("last half", "ddim", guidance_start=0.5),
    ],
}


@pytest.mark.parametrize("checkpoint", LANES)
def test_lanes(
    engine: Engine,
    run_together: RunTogether,
    sd15_pipeline: StableDiffusionPipeline,
    checkpoint: str,
) -> None:
    lanes = [dataclasses.replace(one, checkpoint=checkpoint) for one in LANES[checkpoint]]
    expected = {one.lane_id: by_diffusers(sd15_pipeline, one) for one in lanes}
    work = [(one, encode(sd15_pipeline, one)) for one in lanes]
    assert_close(alone_and_together(engine, run_together, work), expected)


def test_a_unet_that_is_told_the_guidance(engine: Engine, run_together: RunTogether, tiny_lcm: Path) -> None:
    pipe = LatentConsistencyModelPipeline.from_pretrained(
        tiny_lcm, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    lanes = [
        lane(f"guidance {scale:g}", "lcm", checkpoint="lcm", steps=steps, guidance_scale=scale)
        for steps, scale in ((4, 8.5), (1, 1.0), (8, 3.0), (4, 2.0))
    ]
    expected = {
        one.lane_id: pipe(
            prompts_for(one)[0],
            num_inference_steps=one.steps,
            guidance_scale=one.guidance_scale,
            generator=seeded(one),
            height=SIZE,
            width=SIZE,
            output_type="latent",
        ).images[0]
        for one in lanes
    }
    before = engine.stats()
    work = [(one, encode(pipe, one)) for one in lanes]
    assert_close(alone_and_together(engine, run_together, work), expected)
    after = engine.stats()
    assert after.rows_total - before.rows_total == after.lane_steps_total - before.lane_steps_total


def test_a_step_without_guidance_takes_one_row(
    engine: Engine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline
) -> None:
    asked = lane("half", "euler", steps=6, guidance_start=0.34, guidance_end=0.7)
    before = engine.stats().rows_total
    run_together(engine, [(asked, encode(sd15_pipeline, asked))])
    assert engine.stats().rows_total - before == 6 + 2


def test_nobody_elses_guidance_is_in_a_lanes_bits(
    engine: Engine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline
) -> None:
    lanes = [
        lane("plain", "dpmpp_2m", reproducible=True),
        lane("unguided", "ddim", reproducible=True, guidance_scale=1.0),
        lane("rescaled", "euler", reproducible=True, guidance_rescale=0.7),
        lane("at times", "euler_a", reproducible=True, guidance_start=0.2, guidance_end=0.6, guidance_rescale=0.2),
    ]
    work = [(one, encode(sd15_pipeline, one)) for one in lanes]
    together = run_together(engine, work)
    for item, result in zip(work, together, strict=True):
        (alone,) = run_together(engine, [item])
        assert alone.latents is not None
        assert result.latents is not None
        assert np.array_equal(alone.latents, result.latents), item[0].lane_id
