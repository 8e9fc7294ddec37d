"""The web UI's samplers against k-diffusion itself: the same model, the same noise, the same picture."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch

from deployments.engine.errors import InvalidRequest
from deployments.engine.parameters import SamplerOptions
from deployments.engine.samplers.registry import WEBUI_SAMPLERS, WEBUI_SCHEDULES, taken_steps
from deployments.engine.samplers.schedules import NoiseLevels, schedule
from deployments.engine.samplers.tables import SamplerTable, sampler_table
from tests.deployments.engine.samplers import k_diffusion
from tests.deployments.engine.samplers.test_tables import SD, ZERO_SNR

SHAPE = (1, 4, 8, 8)
TOLERANCE = 1e-4  # of the picture's scale; k-diffusion computes some coefficients in float32

ALPHAS: torch.Tensor = diffusers.DDIMScheduler.from_config(SD).alphas_cumprod.double()


def unet(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Stands for a UNet: it isn't linear, so that it answers a wrong input or timestep with something else."""
    return torch.sin(x + t.double().reshape(-1, 1, 1, 1) / 200) + 0.3 * x


def draws() -> Callable[[], torch.Tensor]:
    """A lane's draws, in order."""
    generator = torch.Generator().manual_seed(7)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def run_table(
    table: SamplerTable,
    draw: Callable[[], torch.Tensor],
    clean: torch.Tensor | None = None,
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = unet,
    unguided: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = unet,
) -> torch.Tensor:
    """A lane's loop over the table."""
    noise = draw()
    first = table.init_noise_sigma * noise
    samples = [first if clean is None else table.start_sample * clean + table.start_noise * noise]
    outputs: list[torch.Tensor] = []
    for step in table.steps:
        seen = step.input_scale * samples[0], torch.tensor([step.timestep])
        outputs.insert(0, model(*seen))
        x = sum(a * sample for a, sample in zip(step.samples, samples, strict=False))
        x = x + sum(a * output for a, output in zip(step.outputs, outputs, strict=False))
        x = x + step.unguided * unguided(*seen) + sum(a * draw() for a in step.noises)
        samples.insert(0, x)
    return samples[0]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def levels(schedule: str | None, steps: int, *, discards: bool = False, alphas: torch.Tensor = ALPHAS) -> list[float]:
    """k-diffusion's noise levels."""
    sampling, model = k_diffusion.module("sampling"), k_diffusion.denoiser(unet, alphas)
    ends = float(model.sigma_min), float(model.sigma_max)
    steps += discards
    found: dict[str | None, Callable[[], torch.Tensor]] = {
        None: lambda: model.get_sigmas(steps),
        "karras": lambda: sampling.get_sigmas_karras(steps, *ends),
        "exponential": lambda: sampling.get_sigmas_exponential(steps, *ends),
        "polyexponential": lambda: sampling.get_sigmas_polyexponential(steps, *ends),
    }
    sigmas: list[float] = found[schedule]().double().tolist()
    return [*sigmas[:-2], sigmas[-1]] if discards else sigmas


def named(sampler: str, schedule: str | None) -> str:
    return sampler if schedule is None else f"{sampler}_{schedule}"


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 30])
@pytest.mark.parametrize("schedule", [None, "karras", "exponential"])
@pytest.mark.parametrize("name", k_diffusion.FUNCTIONS)
def test_text_to_image(name: str, schedule: str | None, steps: int) -> None:
    if schedule is not None and not WEBUI_SAMPLERS[name].schedules:
        return
    sigmas = levels(schedule, steps, discards=k_diffusion.FUNCTIONS[name][2])
    draw = draws()
    x = draw() * sigmas[0]
    theirs = k_diffusion.sample(name, k_diffusion.denoiser(unet, ALPHAS), x, sigmas, draw)
    table = sampler_table(SD, named(name, schedule), steps)
    assert error(run_table(table, draws()), theirs) < TOLERANCE


@pytest.mark.parametrize("strength", [0.0, 0.04, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", k_diffusion.FUNCTIONS)
def test_image_to_image(name: str, strength: float) -> None:
    """The web UI goes one step further than the strength says, from the noise level before."""
    steps, discards = 20, k_diffusion.FUNCTIONS[name][2]
    sigmas = levels(None, steps, discards=discards)[steps - int(min(strength, 0.999) * steps) - 1 :]
    draw = draws()
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = clean + draw() * sigmas[0]
    table = sampler_table(SD, name, steps, strength=strength)
    taken = taken_steps(name, steps, strength)
    assert taken == len(sigmas) - 1
    assert len(set(table.inference_steps)) == taken
    assert table.inference_steps[0] == steps - taken
    if name == "webui_dpm_fast" and taken == 1:  # k-diffusion's has the model's two ends
        return
    theirs = k_diffusion.sample(name, k_diffusion.denoiser(unet, ALPHAS), x, sigmas, draw)
    assert error(run_table(table, draws(), clean), theirs) < TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("name", [name for name, entry in WEBUI_SAMPLERS.items() if "s_noise" in entry.options])
def test_eta_and_s_noise(name: str, eta: float) -> None:
    options = SamplerOptions(eta=eta, s_noise=1.1)
    given = {"s_noise": 1.1} | ({"eta": eta} if "eta" in WEBUI_SAMPLERS[name].options else {})
    sigmas = levels("karras" if WEBUI_SAMPLERS[name].schedules else None, 10, discards=k_diffusion.FUNCTIONS[name][2])
    draw = draws()
    x = draw() * sigmas[0]
    theirs = k_diffusion.sample(name, k_diffusion.denoiser(unet, ALPHAS), x, sigmas, draw, **given)
    schedule = "karras" if WEBUI_SAMPLERS[name].schedules else None
    table = sampler_table(SD, named(name, schedule), 10, options=options)
    assert error(run_table(table, draws()), theirs) < TOLERANCE
    if not eta and "eta" in given:
        assert not any(step.noises for step in table.steps)


@pytest.mark.parametrize("name", ["webui_euler", "webui_heun", "webui_dpm2"])
def test_churn(name: str) -> None:
    """Noise that comes before the first evaluation is one with the image's own."""
    steps, churn, s_noise = 10, 3.0, 1.05
    options = SamplerOptions(s_churn=churn, s_tmin=0.5, s_tmax=12.0, s_noise=s_noise)
    sigmas = levels(None, steps, discards=k_diffusion.FUNCTIONS[name][2])
    draw, churned = draws(), iter([0.5 <= sigma <= 12.0 for sigma in sigmas])
    x = draw() * sigmas[0]
    with k_diffusion.randn_like(lambda: draw() if next(churned) else torch.zeros(SHAPE)):
        theirs = k_diffusion.sample(
            name,
            k_diffusion.denoiser(unet, ALPHAS),
            x,
            sigmas,
            draw,
            s_churn=churn,
            s_tmin=0.5,
            s_tmax=12.0,
            s_noise=s_noise,
        )
    assert error(run_table(sampler_table(SD, name, steps, options=options), draws()), theirs) < TOLERANCE
    everywhere = sampler_table(SD, name, steps, options=replace(options, s_tmin=0.0, s_tmax=None))
    hat = sigmas[0] * (1 + churn / steps)
    added = s_noise * (hat**2 - sigmas[0] ** 2) ** 0.5
    assert everywhere.init_noise_sigma == pytest.approx((sigmas[0] ** 2 + added**2) ** 0.5, rel=1e-6)
    assert everywhere.steps[0].input_scale == pytest.approx((hat**2 + 1) ** -0.5, rel=1e-6)


@pytest.mark.parametrize("name", ["webui_dpmpp_2m", "webui_dpmpp_sde", "webui_lms", "webui_dpm2"])
@pytest.mark.parametrize("config", [ZERO_SNR, SD | {"prediction_type": "v_prediction"}], ids=["zero-snr", "v"])
def test_v_prediction(name: str, config: dict[str, Any]) -> None:
    alphas = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.double()
    alphas[alphas == 0] = 4.8973451890853435e-08  # what the web UI puts there
    sigmas = levels(None, 10, discards=k_diffusion.FUNCTIONS[name][2], alphas=alphas)
    draw = draws()
    x = draw() * sigmas[0]
    theirs = k_diffusion.sample(name, k_diffusion.denoiser(unet, alphas, v_prediction=True), x, sigmas, draw)
    assert error(run_table(sampler_table(config, name, 10), draws()), theirs) < TOLERANCE


def test_restart() -> None:
    """k-diffusion's Heun, in the order of stretches that the paper's algorithm has and the web UI's choice of them."""
    sampling, model = k_diffusion.module("sampling"), k_diffusion.denoiser(unet, ALPHAS)
    for steps, again, times in ((12, 0, 0), (20, 9, 1), (40, 10, 2)):
        ends = float(model.sigma_min), float(model.sigma_max)
        main = sampling.get_sigmas_karras(steps - again * times, *ends).double()
        low, high = (int((main - level).abs().argmin()) for level in (0.1, 2.0))
        stretches = [main[: low + 1], main[low:]]
        if times:
            back = sampling.get_sigmas_karras(again + 1, float(main[low]), float(main[high]))[:-1].double()
            stretches[1:1] = [back] * times
        draw = draws()
        x = draw() * main[0]
        for number, stretch in enumerate(stretches):
            if 0 < number <= times:
                x = x + draw() * (main[high] ** 2 - main[low] ** 2).sqrt()
            x = sampling.sample_heun(model, x, stretch, {"cond": None}, disable=True)
        table = sampler_table(SD, "webui_restart_karras", steps)
        assert error(run_table(table, draws()), x) < TOLERANCE, steps
        assert set(table.inference_steps) == set(range(steps))


def run_scheduler(scheduler: Any, timesteps: Any, start: torch.Tensor, eta: float | None = None) -> torch.Tensor:
    """diffusers' loop; samples are sqrt(alpha) as large as k-diffusion's."""
    draw = draws()
    draw()
    x = start
    for t in timesteps:
        noise = {} if eta is None else {"eta": eta, "variance_noise": draw()}
        x = scheduler.step(unet(x, t), t, x, return_dict=False, **noise)[0]
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(eta: float) -> None:
    """The web UI takes DDIM's steps but for the last one: twenty timesteps, nineteen evaluations."""
    scheduler = diffusers.DDIMScheduler.from_config(SD)
    scheduler.set_timesteps(20)
    theirs = run_scheduler(scheduler, scheduler.timesteps[:-1], draws()(), eta)
    table = sampler_table(SD, "webui_ddim", 20, options=SamplerOptions(eta=eta))
    assert [step.timestep for step in table.steps] == scheduler.timesteps[:-1].tolist()
    assert error(run_table(table, draws()), theirs) < TOLERANCE
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noisy = scheduler.add_noise(clean, draws()(), scheduler.timesteps[4:5])  # timesteps[t_enc] there, t_enc being 15
    theirs = run_scheduler(scheduler, scheduler.timesteps[5:-1], noisy, eta)
    table = sampler_table(SD, "webui_ddim", 20, strength=0.75, options=SamplerOptions(eta=eta))
    assert error(run_table(table, draws(), clean), theirs) < TOLERANCE


def test_plms() -> None:
    scheduler = diffusers.PNDMScheduler.from_config(SD)
    scheduler.set_timesteps(20)
    theirs = run_scheduler(scheduler, scheduler.timesteps[:-1], draws()())
    assert error(run_table(sampler_table(SD, "webui_plms", 20), draws()), theirs) < TOLERANCE


@pytest.mark.parametrize("steps", [3, 10, 20])
def test_unipc(steps: int) -> None:
    """diffusers' UniPC on the web UI's times: evenly from the last timestep to the first, both included."""
    scheduler = diffusers.UniPCMultistepScheduler.from_config(
        SD, solver_order=3, solver_type="bh1", predict_x0=True, lower_order_final=True
    )
    count = len(range(0, 1000, 1000 // steps))
    scheduler.set_timesteps(count)
    times = torch.linspace(999, 0, count + 1, dtype=torch.float64)
    log_alphas = ALPHAS.log()
    below, share = times.floor().long(), times.frac()
    alphas = ((1 - share) * log_alphas[below] + share * log_alphas[times.ceil().long()]).exp()
    scheduler.sigmas = (1 / alphas - 1).sqrt()
    scheduler.timesteps = times[:-1]
    theirs = run_scheduler(scheduler, scheduler.timesteps, draws()())
    table = sampler_table(SD, "webui_unipc", steps)
    assert [step.timestep for step in table.steps] == pytest.approx(times[:-1].tolist())
    assert error(run_table(table, draws()), theirs) < TOLERANCE


@pytest.mark.parametrize("steps", [2, 8, 50])
def test_lcm(steps: int) -> None:
    """Where the web UI's noise levels are those of timesteps, it does what diffusers' LCM does there."""
    scheduler = diffusers.LCMScheduler.from_config(SD)
    timesteps = torch.linspace(999, 19, steps).round().long().tolist()
    scheduler.set_timesteps(timesteps=timesteps, original_inference_steps=50)
    draw = draws()
    x = draw() * (1 - ALPHAS[999]).sqrt()  # the web UI's first sample is sigma * noise alone
    for step, t in enumerate(timesteps):
        scheduler._step_index = step
        denoised = scheduler.step(unet(x, torch.tensor(t)), t, x, return_dict=False)[1]
        alpha = ALPHAS[timesteps[step + 1]] if step + 1 < steps else torch.ones(())
        x = alpha.sqrt() * denoised + ((1 - alpha).sqrt() * draw() if step + 1 < steps else 0)
    table = sampler_table(SD, "webui_lcm", steps)
    assert [step.timestep for step in table.steps] == timesteps
    assert error(run_table(table, draws()), x) < TOLERANCE


def other(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Stands for a UNet that is told the negative prompt."""
    return torch.cos(x - t.double().reshape(-1, 1, 1, 1) / 300)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_cfgpp(eta: float) -> None:
    """arXiv:2406.08070, algorithm 2: DDIM whose direction is the unguided output's; a guidance of 12.5 is lambda 1."""
    scheduler = diffusers.DDIMScheduler.from_config(SD)
    scheduler.set_timesteps(20)
    draw = draws()
    x = draw()
    for t, to in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        alpha, alpha_to = ALPHAS[t], ALPHAS[to]
        noise = eta * ((1 - alpha_to) / (1 - alpha) * (1 - alpha / alpha_to)).sqrt()
        clean = (x - (1 - alpha).sqrt() * unet(x, t)) / alpha.sqrt()
        x = alpha_to.sqrt() * clean + (1 - alpha_to - noise**2).sqrt() * other(x, t) + noise * draw()
    table = sampler_table(SD, "webui_ddim_cfgpp", 20, options=SamplerOptions(eta=eta))
    assert table.guidance_factor == 1 / 12.5
    assert error(run_table(table, draws(), unguided=other), x) < TOLERANCE


@pytest.mark.parametrize("name", ["webui_euler_cfgpp", "webui_euler_a_cfgpp"])
def test_euler_cfgpp(name: str) -> None:
    """The same over k-diffusion's noise levels."""
    model, unguided = k_diffusion.denoiser(unet, ALPHAS), k_diffusion.denoiser(other, ALPHAS)
    sigmas = torch.tensor(levels("karras", 10), dtype=torch.float64)
    draw = draws()
    x = draw() * sigmas[0]
    for sigma, to in pairwise(sigmas):
        eta = 1.0 if name == "webui_euler_a_cfgpp" else 0.0
        down, up = k_diffusion.module("sampling").get_ancestral_step(sigma, to, eta)
        away = (x - unguided(x, sigma[None], cond=None)) / sigma
        x = model(x, sigma[None], cond=None) + away * down
        if up > 0:
            x = x + draw() * up
    table = sampler_table(SD, f"{name}_karras", 10)
    assert error(run_table(table, draws(), unguided=other), x) < TOLERANCE


def test_ipndm_is_lms_where_noise_levels_are_even() -> None:
    even = "webui_ipndm", "webui_lms"
    tables = [sampler_table(SD | {"trained_betas": even_betas()}, name, 10) for name in even]
    for ipndm, lms in zip(tables[0].steps[:-1], tables[1].steps[:-1], strict=True):  # the last is a shorter one
        assert ipndm.outputs == pytest.approx(lms.outputs, rel=1e-4)


def even_betas() -> list[float]:
    """Of a model whose noise levels are even in its timesteps."""
    sigmas = torch.linspace(0, 10, 1001, dtype=torch.float64)[1:]
    alphas = 1 / (1 + sigmas**2)
    return (1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])).tolist()


LEVELS = NoiseLevels((1 / ALPHAS - 1).sqrt().numpy(), torch.arange(1000).double().numpy())


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        (None, (999, 666, 333, 0)),
        ("normal", (999, 666, 333, 0)),
        ("sgm_uniform", (999, 749.25, 499.5, 249.75)),
        ("simple", (999, 749, 499, 249)),
        ("ddim", (751, 501, 251, 1)),
        ("turbo", (999, 749, 499, 249)),
        ("smoothstep", (999, 843, 500, 156)),
    ],
)
def test_schedules_of_timesteps(name: str | None, timesteps: tuple[float, ...]) -> None:
    sigmas = schedule(name, 4, LEVELS)
    assert [LEVELS.timestep(sigma) for sigma in sigmas[:-1]] == pytest.approx(timesteps, abs=0.01)
    assert sigmas[-1] == 0


@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential"])
def test_schedules_of_k_diffusion(name: str) -> None:
    for steps in (1, 2, 20):
        assert schedule(name, steps, LEVELS).tolist() == pytest.approx(levels(name, steps), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "steps", "first", "last"),
    [
        ("align_your_steps", 11, [14.615, 6.475, 3.861], [0.152, 0.029, 0]),
        ("align_your_steps_xl", 11, [14.615, 6.315, 3.771], [0.113, 0.029, 0]),
        ("align_your_steps_11", 21, [14.615, (14.615 * 6.475) ** 0.5, 6.475], [(0.152 * 0.029) ** 0.5, 0.029, 0]),
        ("align_your_steps_gits", 11, [14.615, 4.617, 2.507], [0.094, 0.029, 0]),
        ("align_your_steps_32", 32, [14.615, 11.23951352], [0.03166121, 0.015, 0]),
        ("align_your_steps_32_xl", 32, [14.615, 11.1491618], [0.02877334, 0.015, 0]),
        ("kl_optimal", 2, [14.61465], [math.tan((math.atan(14.61465) + math.atan(0.0291675)) / 2), 0.0291675]),
        ("beta", 3, [14.61465, 7.321907], [0.0291675, 0]),
    ],
)
def test_schedules_of_noise_levels(name: str, steps: int, first: list[float], last: list[float]) -> None:
    sigmas = schedule(name, steps, LEVELS).tolist()
    assert sigmas[: len(first)] == pytest.approx(first, rel=1e-5)
    assert sigmas[-len(last) :] == pytest.approx(last, rel=1e-5)
    assert len(sigmas) == steps + 1


@pytest.mark.parametrize("name", WEBUI_SAMPLERS)
def test_every_schedule_makes_tables(name: str) -> None:
    for named_schedule in (None, *WEBUI_SAMPLERS[name].schedules):
        for steps in (2, 3, 9, 30):
            table = sampler_table(SD, named(name, named_schedule), steps)
            assert list(table.inference_steps) == sorted(table.inference_steps)
            assert table.inference_steps[0] == 0
            assert table.inference_steps[-1] < steps


@pytest.mark.parametrize("name", sorted(WEBUI_SAMPLERS.keys() - {"webui_plms"}))  # its first step has two evaluations
def test_base_and_refiner_share_out_the_schedule(name: str) -> None:
    """Between whole steps, and on the same noise levels."""
    schedules = ("karras",) if WEBUI_SAMPLERS[name].schedules else (None,)
    for full in (named(name, each) for each in schedules):
        whole = sampler_table(SD, full, 20)
        base = sampler_table(SD, full, 20, denoising_end=0.6)
        refiner = sampler_table(SD, full, 20, denoising_start=0.6)
        timesteps = [step.timestep for step in (*base.steps, *refiner.steps)]
        assert timesteps == pytest.approx([step.timestep for step in whole.steps])
        assert (refiner.start_sample, refiner.start_noise) == (1.0, 0.0)
        assert base.inference_steps == whole.inference_steps[: len(base.steps)]
        assert not set(base.inference_steps) & set(refiner.inference_steps)


def test_what_inpainting_keeps_has_the_noise_of_the_next_evaluation() -> None:
    table = sampler_table(SD, "webui_dpm2_karras", 10)
    for step, following in zip(table.steps, table.steps[1:], strict=False):
        clean, noise = step.kept
        assert clean == 1
        assert following.input_scale == pytest.approx((noise**2 + 1) ** -0.5)
    assert table.steps[-1].kept == (1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"strength": -0.1}, "strength"),
        ({"denoising_end": 0.0001}, "denoising_end"),
        ({"denoising_start": 0.9999}, "denoising_start"),
    ],
)
def test_what_leaves_nothing_to_run(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampler_table(SD, "webui_euler", **({"steps": 20} | options))
    assert caught.value.field == field


def test_every_schedule_is_tested() -> None:
    assert all(schedule(name, 5, LEVELS)[0] > 0 for name in WEBUI_SCHEDULES)
