"""Tables against diffusers itself: the same schedule, the same draws, the same numbers."""

import copy
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from deployments.engine.errors import InvalidRequest, UnknownSampler
from deployments.engine.samplers.registry import NAMES, SAMPLERS, SCHEDULES, split
from deployments.engine.samplers.tables import SamplerTable, sampler_table
from tests.deployments.engine.samplers.diffusers_schedulers import SCHEDULED, SCHEDULERS

# scheduler_config.json of Stable Diffusion 1.5; SDXL's differs in names that these schedulers share
SD: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
ZERO_SNR = SD | {
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
SHAPE = (1, 4, 8, 8)
TOLERANCE = 1e-5  # of the states' scale; float32 rounding in another order, nothing else


@dataclass(frozen=True)
class Part:
    """Which part of a schedule runs, in sampler_table's words."""

    denoising_start: float = 0.0
    denoising_end: float = 1.0
    strength: float | None = None

    def __str__(self) -> str:
        return f"{self.denoising_start}-{self.denoising_end}" + (f"-strength-{self.strength}" if self.strength else "")


WHOLE = Part()
PARTS = (
    WHOLE,
    Part(strength=0.6),
    Part(denoising_end=0.8),
    Part(denoising_start=0.8),
    Part(denoising_start=0.5),
    Part(denoising_start=0.3, denoising_end=0.7),
    Part(strength=0.7, denoising_end=0.8),
)


@dataclass
class Run:
    """What a run went through: states[0] is where it started, `draws` the generator's state at the end."""

    timesteps: list[float]
    inputs: list[torch.Tensor]
    states: list[torch.Tensor]
    draws: torch.Tensor


def table_of(config: dict[str, Any], name: str, steps: int, part: Part = WHOLE) -> SamplerTable:
    return sampler_table(
        config,
        name,
        steps,
        denoising_start=part.denoising_start,
        denoising_end=part.denoising_end,
        strength=part.strength,
    )


def pipeline_schedule(scheduler: Any, steps: int, part: Part) -> Any:
    """The timesteps that diffusers' SDXL pipelines run; sets the scheduler's begin index as they do."""
    timesteps = scheduler.timesteps
    if part.strength is not None or part.denoising_start > 0:
        pipe = SimpleNamespace(scheduler=scheduler)
        start = part.denoising_start or None
        timesteps, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipe, steps, part.strength, "cpu", start)
    elif hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    if part.denoising_end < 1:  # from StableDiffusionXLPipeline.__call__
        trained = scheduler.config.num_train_timesteps
        discrete_timestep_cutoff = round(trained - part.denoising_end * trained)
        num_inference_steps = len(list(filter(lambda ts: ts >= discrete_timestep_cutoff, timesteps)))
        timesteps = timesteps[:num_inference_steps]
    return timesteps


def prepared(config: dict[str, Any], name: str, steps: int, part: Part) -> tuple[Any, Any]:
    """diffusers' scheduler, as its users make it, and the timesteps to run."""
    scheduler = copy.deepcopy(built(name, json.dumps(config, default=np.ndarray.tolist)))
    scheduler.set_timesteps(steps)
    return scheduler, pipeline_schedule(scheduler, steps, part)


@cache
def built(name: str, config: str) -> Any:
    class_name, changes = (SCHEDULERS | SCHEDULED)[name]
    return getattr(diffusers, class_name).from_config(json.loads(config), **changes)


def run_diffusers(config: dict[str, Any], name: str, steps: int, part: Part, outputs: torch.Tensor) -> Run:
    """A pipeline's loop over the scheduler, with given model outputs."""
    scheduler, timesteps = prepared(config, name, steps, part)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=generator)
    if part.strength is not None:
        x = scheduler.add_noise(clean_latents(), x, timesteps[:1])
    elif part.denoising_start == 0:
        x = x * scheduler.init_noise_sigma
    arguments = {"generator": generator, "eta": 0.0}  # as prepare_extra_step_kwargs: what step takes
    arguments = {k: v for k, v in arguments.items() if k in inspect.signature(scheduler.step).parameters}
    inputs, states = [], [x]
    for k, t in enumerate(timesteps):
        inputs.append(scheduler.scale_model_input(x, t))
        x = scheduler.step(outputs[k], t, x, **arguments, return_dict=False)[0]
        states.append(x)
    return Run(timesteps.tolist(), inputs, states, generator.get_state())


def run_table(table: SamplerTable, part: Part, outputs: torch.Tensor) -> Run:
    """A lane's loop over the table: float32, one multiply-add after another."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=generator)
    if part.strength is not None:
        x = table.start_sample * clean_latents() + table.start_noise * x
    elif part.denoising_start == 0:
        x = table.init_noise_sigma * x
    inputs, states = [], [x]
    for k, step in enumerate(table.steps):
        inputs.append(step.input_scale * x)
        x = torch.zeros(SHAPE)
        for j, coefficient in enumerate(step.samples):
            x += coefficient * states[k - j]
        for j, coefficient in enumerate(step.outputs):
            x += coefficient * outputs[k - j]
        for coefficient in step.noises:
            x += coefficient * torch.randn(SHAPE, generator=generator)
        states.append(x)
    return Run([step.timestep for step in table.steps], inputs, states, generator.get_state())


def clean_latents() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def model_outputs(count: int) -> torch.Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(5))


def worst_error(table: SamplerTable, config: dict[str, Any], name: str, steps: int, part: Part) -> float:
    """Largest difference of any state to diffusers', of the state's scale; asserts what has to be equal."""
    outputs = model_outputs(len(table.steps))
    theirs = run_diffusers(config, name, steps, part, outputs)
    ours = run_table(table, part, outputs)
    assert ours.timesteps == theirs.timesteps
    assert torch.equal(ours.draws, theirs.draws), "the generators are no longer in step"
    pairs = list(zip(ours.states + ours.inputs, theirs.states + theirs.inputs, strict=True))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_table_is_the_scheduler(name: str, part: Part) -> None:
    for steps in (4, 20, 50) if part == WHOLE else (4, 20):
        if not len(prepared(SD, name, steps, part)[1]):
            with pytest.raises(InvalidRequest, match="no step is left"):
                table_of(SD, name, steps, part)
            continue
        table = table_of(SD, name, steps, part)
        assert worst_error(table, SD, name, steps, part) < TOLERANCE, f"{steps} steps"


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_in_the_name(name: str) -> None:
    table = table_of(SD, name, 6)
    assert worst_error(table, SD, name, 6, WHOLE) < TOLERANCE
    assert table != table_of(SD, name.rpartition("_")[0], 6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_in_the_name_is_the_only_one(schedule: str) -> None:
    beta = SD | {"use_beta_sigmas": True}
    assert table_of(beta, f"euler_{schedule}", 6) == table_of(SD, f"euler_{schedule}", 6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_step(name: str) -> None:
    table = table_of(SD, name, 1)
    assert len(table.steps) == 1
    assert (table.past_samples, table.past_outputs) == (0, 0)
    assert worst_error(table, SD, name, 1, WHOLE) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "v_prediction"},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace", "steps_offset": 0},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "set_alpha_to_one": True},
        {"trained_betas": np.linspace(0.001, 0.01, 1000)},
        {"use_karras_sigmas": True},
        {"final_sigmas_type": "sigma_min", "solver_order": 3},
        {"skip_prk_steps": False},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"lms", "kdpm2", "kdpm2_a"}))  # slow to make
def test_the_config_is_honoured(name: str, changes: dict[str, Any]) -> None:
    config = SD | changes
    if name.startswith("dpmpp"):  # a name says the order, and whether the sigmas are Karras's
        config = {k: v for k, v in config.items() if k not in ("solver_order", "use_karras_sigmas")}
    assert worst_error(table_of(config, name, 12), config, name, 12, WHOLE) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd"]
)
@pytest.mark.parametrize("part", [WHOLE, Part(strength=0.6), Part(denoising_start=0.5)], ids=str)
def test_zero_terminal_snr(name: str, part: Part) -> None:
    table = table_of(ZERO_SNR, name, 20, part)
    assert worst_error(table, ZERO_SNR, name, 20, part) < TOLERANCE


@pytest.mark.parametrize("name", SAMPLERS)
def test_base_and_refiner_share_out_the_schedule(name: str) -> None:
    """What the base leaves is what the refiner takes, but for the halves of second order steps (as in diffusers)."""
    whole = [step.timestep for step in table_of(SD, name, 20).steps]
    base = [step.timestep for step in table_of(SD, name, 20, Part(denoising_end=0.8)).steps]
    refiner = [step.timestep for step in table_of(SD, name, 20, Part(denoising_start=0.8)).steps]
    assert base == whole[: len(base)]
    assert refiner == whole[len(whole) - len(refiner) :]
    assert 0 <= len(base) + len(refiner) - len(whole) <= (name in ("heun", "kdpm2", "kdpm2_a"))


def test_the_start_of_img2img_and_of_a_hand_over() -> None:
    handed_over = table_of(SD, "ddim", 20, Part(denoising_start=0.5))
    assert (handed_over.start_sample, handed_over.start_noise) == (1.0, 0.0)
    half = table_of(SD, "ddim", 20, Part(strength=0.5))
    assert half.start_sample**2 + half.start_noise**2 == pytest.approx(1.0)
    assert table_of(SD, "euler", 20, Part(strength=0.5)).start_sample == 1.0


def test_draws_without_effect_are_kept() -> None:
    """Euler a draws in its last step too, where the noise has no weight."""
    table = table_of(SD, "euler_a", 4)
    assert [len(step.noises) for step in table.steps] == [1, 1, 1, 1]
    assert table.steps[-1].noises == (0.0,)
    assert [len(step.noises) for step in table_of(SD, "lcm", 4).steps] == [1, 1, 1, 0]
    assert not any(step.noises for step in table_of(SD, "tcd", 4).steps)


@pytest.mark.parametrize(
    ("name", "past"),
    [
        ("ddim", (0, 0)),
        ("euler", (0, 0)),
        ("dpmpp_2m", (1, 1)),
        ("heun", (1, 1)),
        ("kdpm2", (1, 0)),
        ("lms", (0, 3)),
        ("unipc", (2, 2)),
        ("pndm", (1, 4)),
    ],
)
def test_history_is_as_short_as_the_sampler_allows(name: str, past: tuple[int, int]) -> None:
    table = table_of(SD, name, 20)
    assert (table.past_samples, table.past_outputs) == past
    for k, step in enumerate(table.steps):
        assert 1 <= len(step.samples) <= 1 + min(k, past[0])
        assert 1 <= len(step.outputs) <= 1 + min(k, past[1])


def test_lms_integrates_as_diffusers_does() -> None:
    scheduler, _ = prepared(SD, "lms", 10, WHOLE)
    for k, step in enumerate(table_of(SD, "lms", 10).steps):
        assert list(step.outputs) == [
            scheduler.get_lms_coefficient(len(step.outputs), k, j) for j in range(min(k + 1, 4))
        ]


def test_a_name_says_whether_sigmas_are_karras() -> None:
    karras = SD | {"use_karras_sigmas": True}
    assert table_of(karras, "dpmpp_2m", 10) == table_of(SD, "dpmpp_2m", 10)
    assert table_of(karras, "dpmpp_2m_karras", 10) == table_of(SD, "dpmpp_2m_karras", 10)
    assert table_of(karras, "euler", 10) != table_of(SD, "euler", 10)
    exponential = SD | {"use_exponential_sigmas": True}
    assert table_of(exponential, "dpmpp_2m_karras", 10) == table_of(SD, "dpmpp_2m_karras", 10)


def test_a_config_of_a_live_pipeline_is_the_same_as_its_file() -> None:
    config = diffusers.PNDMScheduler.from_config(SD).config
    assert sampler_table(config, "ddim", 10) == sampler_table(SD, "ddim", 10)


def test_what_the_config_leaves_out_is_meant_for_latents() -> None:
    silent = {k: v for k, v in SD.items() if k not in ("clip_sample", "skip_prk_steps")}
    for name in ("ddim", "ddpm", "pndm"):
        assert table_of(silent, name, 10) == table_of(SD, name, 10)


def test_tables_are_cached_by_the_part_that_runs() -> None:
    table = sampler_table(SD, "Euler a", 20, strength=0.6)
    assert sampler_table(dict(reversed(SD.items())), "euler_a", 20, strength=0.62) is table


def test_threads_trace_side_by_side() -> None:
    """Noise is caught for the tracing thread alone; the others go on drawing real noise."""
    expected = torch.randn(64, generator=torch.Generator().manual_seed(1))

    def draw(_: int) -> bool:
        return torch.equal(torch.randn(64, generator=torch.Generator().manual_seed(1)), expected)

    with ThreadPoolExecutor(4) as pool:
        tables = [pool.submit(table_of, SD, "dpmpp_2m_sde", steps) for steps in (33, 34, 35)]
        assert all(pool.map(draw, range(500)))
    for steps, table in zip((33, 34, 35), tables, strict=True):
        assert worst_error(table.result(), SD, "dpmpp_2m_sde", steps, WHOLE) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("ddim", {"clip_sample": True}, "clip_sample"),
        ("ddpm", {"thresholding": True}, "thresholding"),
        ("dpmpp_2m", {"thresholding": True}, "thresholding"),
        ("lcm", {"clip_sample": True}, "clip_sample"),
        ("ddpm", {"variance_type": "learned_range"}, "learned variance"),
        ("kdpm2_a", {"prediction_type": "sample"}, "not implemented"),
        ("euler", {"timestep_spacing": "sideways"}, "sideways"),
        ("ddim", {"beta_schedule": "none"}, "not implemented"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "finite"),
    ],
)
def test_schedulers_that_no_table_can_hold(name: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnknownSampler, match=reason) as caught:
        table_of(SD | changes, name, 10)
    assert caught.value.field == "scheduler"
    assert name in caught.value.message


def test_clipping_is_found_without_a_word_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random columns see what the config doesn't say."""
    original = diffusers.DDIMScheduler.step

    def clipped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (original(self, *args, **kwargs)[0].clamp(-20, 20),)

    monkeypatch.setattr(diffusers.DDIMScheduler, "step", clipped)
    with pytest.raises(UnknownSampler, match="isn't linear"):
        table_of(SD, "ddim", 9)


@pytest.mark.parametrize(
    ("field", "steps", "part"),
    [
        ("steps", 0, WHOLE),
        ("steps", 1001, WHOLE),
        ("strength", 20, Part(strength=0.0)),
        ("strength", 20, Part(strength=-0.1)),
        ("strength", 20, Part(strength=1.1)),
        ("strength", 20, Part(strength=float("nan"))),
        ("strength", 20, Part(strength=0.04)),
        ("strength", 20, Part(strength=0.5, denoising_start=0.5)),
        ("denoising_start", 20, Part(denoising_start=-0.1)),
        ("denoising_start", 20, Part(denoising_start=1.0)),
        ("denoising_start", 20, Part(denoising_start=0.9999)),
        ("denoising_end", 20, Part(denoising_end=0.0)),
        ("denoising_end", 20, Part(denoising_end=1.5)),
        ("denoising_end", 20, Part(denoising_start=0.8, denoising_end=0.8)),
        ("denoising_end", 20, Part(denoising_start=0.8, denoising_end=0.4)),
        ("denoising_end", 20, Part(denoising_start=0.5, denoising_end=0.501)),
        ("denoising_end", 20, Part(denoising_end=0.01)),
        ("denoising_end", 20, Part(strength=0.1, denoising_end=0.5)),
    ],
)
def test_requests_that_leave_nothing_to_run(field: str, steps: int, part: Part) -> None:
    with pytest.raises(InvalidRequest) as caught:
        table_of(SD, "ddim", steps, part)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_no_more_steps_than_were_distilled(name: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 50 steps") as caught:
        table_of(SD, name, 51)
    assert caught.value.field == "steps"


def test_every_name_has_a_sampler() -> None:
    of_diffusers = {name for name in NAMES if split(name)[0] in SAMPLERS}
    assert of_diffusers == (SCHEDULERS | SCHEDULED).keys()


def test_the_samplers_that_know_zero_terminal_snr() -> None:
    def knows(name: str) -> bool:
        scheduler = getattr(diffusers, SAMPLERS[name].scheduler)
        return "rescale_betas_zero_snr" in inspect.signature(scheduler.__init__).parameters

    assert {name for name in SAMPLERS if knows(name)} == {
        name for name, sampler in SAMPLERS.items() if sampler.zero_snr
    }
