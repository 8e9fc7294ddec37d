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
from deployments.engine.errors import InvalidRequest
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


@contextmanager
def composing(unet: Any, text: Conditioning) -> Iterator[None]:
    """diffusers' pipelines have one prompt; its output becomes that of the composition."""
    others = [torch.from_numpy(one.hidden_states)[None] for one in text.composed]

    def hook(_unet: Any, inputs: Any, named: dict[str, Any], output: tuple[torch.Tensor]) -> Any:
        negative, first = output[0].chunk(2)
        sample = inputs[0].chunk(2)[1]
        further = [  # (by a call of the module itself, hooks would count it)
            unet.forward(sample, *inputs[1:], **{**named, "encoder_hidden_states": other})[0] for other in others
        ]
        weighed = zip(text.weights, [first, *further], strict=True)
        return (torch.cat([negative, negative + sum(weight * (one - negative) for weight, one in weighed)]),)

    handle = unet.register_forward_hook(hook, with_kwargs=True)
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


def composed_of(pipe: Any, request: DenoiseRequest, weights: tuple[float, ...]) -> Conditioning:
    """The request's prompt with others."""
    others = [
        encode(pipe, dataclasses.replace(request, seed=request.seed + number)) for number in range(1, len(weights))
    ]
    composed = tuple(other.positive for other in others)
    return dataclasses.replace(encode(pipe, request), composed=composed, weights=weights)


def test_composed_prompts(engine: Engine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline) -> None:
    asked = {
        "two": (1.0, 1.0),
        "three": (1.2, -0.5, 0.7),
        "alone": (1.0,),
        "five": (0.2, 0.4, 0.6, 0.8, 1.0),
    }
    samplers = ("dpmpp_2m", "ddim", "euler_a", "unipc")
    work, expected = [], {}
    for (name, weights), sampler in zip(asked.items(), samplers, strict=True):
        request = lane(name, sampler, checkpoint="sd15", composed_prompts=len(weights), guidance_rescale=0.3)
        text = composed_of(sd15_pipeline, request, weights)
        work.append((request, text))
        with composing(sd15_pipeline.unet, text):
            expected[name] = by_diffusers(sd15_pipeline, request)
    assert_close(alone_and_together(engine, run_together, work), expected)


def test_nobody_elses_lane_is_in_a_composition_s_bits(
    engine: Engine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline
) -> None:
    request = lane("two", "dpmpp_2m", checkpoint="sd15", composed_prompts=2, reproducible=True)
    text = composed_of(sd15_pipeline, request, (1.0, 0.8))
    others = [
        (one, encode(sd15_pipeline, one))
        for one in (
            lane("plain", "ddim", reproducible=True),
            lane("unguided", "ddim", reproducible=True, guidance_scale=1.0),
        )
    ]
    (alone,) = run_together(engine, [(request, text)])
    together, plain, _ = run_together(engine, [(request, text), *others])
    (plain_alone,) = run_together(engine, others[:1])
    for one, other in ((alone, together), (plain, plain_alone)):
        assert one.latents is not None
        assert other.latents is not None
        assert np.array_equal(one.latents, other.latents)


@pytest.mark.parametrize(
    ("changes", "weights", "reason"),
    [
        ({"composed_prompts": 1}, (1.0, 1.0), "the texts are of 2 prompts"),
        ({"composed_prompts": 2}, (1.0,), "the texts are of 1 prompts"),
        ({"composed_prompts": 2, "guidance_scale": 1.0}, (1.0, 1.0), "AND, which needs guidance"),
        ({"composed_prompts": 2, "guidance_end": 0.5}, (1.0, 1.0), "AND, which needs guidance"),
        ({"composed_prompts": 2, "checkpoint": "lcm", "sampler": "lcm"}, (1.0, 1.0), "distilled with guidance"),
    ],
)
def test_what_cannot_be_composed_is_refused(
    engine: Engine,
    run_together: RunTogether,
    sd15_pipeline: StableDiffusionPipeline,
    changes: dict[str, Any],
    weights: tuple[float, ...],
    reason: str,
) -> None:
    request = lane("x", **{"sampler": "ddim", "checkpoint": "sd15", **changes})
    with pytest.raises(InvalidRequest, match=reason):
        run_together(engine, [(request, composed_of(sd15_pipeline, request, weights))])


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
