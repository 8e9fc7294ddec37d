"""img2img and inpainting against diffusers' own pipelines: alone, and lanes with a mask among lanes without."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from tests.deployments.engine.denoising.parity import assert_close, encode, reference, seeded
from tests.deployments.engine.samplers.diffusers_schedulers import SCHEDULERS

Work = tuple[DenoiseRequest, Conditioning]
RunTogether = Callable[[Engine, list[Work]], list[DenoiseResult]]

SIZE = 64
Y, X = np.mgrid[0:SIZE, 0:SIZE]
PICTURE = np.stack([X * 3 % 256, Y * 3 % 256, (X + Y) % 256], axis=-1).astype(np.uint8)
# with greys on both sides of the middle, and an edge that isn't a multiple of 8
MASK = (np.clip(X - 12, 0, 30) * 8).astype(np.uint8)
STRENGTHS = (0.6, 1.0)
SOME_SAMPLERS = ("ddim", "euler_a", "dpmpp_2m_sde_karras", "unipc", "pndm")


@pytest.fixture(scope="module")
def engine(tiny_sd15: Path, tiny_sd15_inpainting: Path, tiny_sdxl: Path, tiny_sdxl_refiner: Path) -> Iterator[Engine]:
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "inpainting": CheckpointSpec(family="sd15", source=str(tiny_sd15_inpainting)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
        "refiner": CheckpointSpec(family="sdxl-refiner", source=str(tiny_sdxl_refiner)),
    }
    settings = EngineSettings(device="cpu", cpu_threads=1, resident_checkpoints=4, reproducible_rows=16)
    engine = Engine(settings, catalogue)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def inpainting(tiny_sd15_inpainting: Path) -> Any:
    return quiet(
        StableDiffusionInpaintPipeline.from_pretrained(
            tiny_sd15_inpainting, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
    )


@pytest.fixture(scope="module")
def refiner(tiny_sdxl_refiner: Path) -> Any:
    loaded = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_sdxl_refiner, dtype=torch.float32, add_watermarker=False
    )
    return quiet(loaded)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def requests_for(
    checkpoint: str, samplers: tuple[str, ...], strengths: tuple[float, ...], **changes: Any
) -> list[DenoiseRequest]:
    """Each sampler with the mask and without, at one of the strengths each time."""
    return [
        DenoiseRequest(
            lane_id=f"{sampler}{' masked' * (mask is not None)}",
            checkpoint=checkpoint,
            seed=1000 + index,
            steps=(6, 5, 8)[index % 3],
            guidance_scale=(3.0, 1.0)[index % 2],
            width=SIZE,
            height=SIZE,
            sampler=sampler,
            image=PICTURE,
            mask=mask,
            strength=strengths[(index + (mask is not None)) % len(strengths)],
            output="latents",
            **changes,
        )
        for index, sampler in enumerate(samplers)
        for mask in (None, MASK)
    ]


def check(
    engine: Engine, run_together: RunTogether, plain: Any, masking: Any, requests: list[DenoiseRequest], **options: Any
) -> None:
    """Each lane by itself, then all at once in batches of eight lanes with guidance, against one call of a pipeline."""
    expected = {
        request.lane_id: reference(
            plain if request.mask is None else masking,
            request,
            seeded(request),
            image=Image.fromarray(PICTURE),
            strength=request.strength,
            **({} if request.mask is None else {"mask_image": Image.fromarray(MASK), "height": SIZE, "width": SIZE}),
            **options,
        )
        for request in requests
    }
    work = [(request, encode(masking, request)) for request in requests]
    alone = [run_together(engine, [item])[0] for item in work]
    before = engine.stats()
    together = run_together(engine, [(dataclasses.replace(request, reproducible=True), text) for request, text in work])
    after = engine.stats()
    steps, lane_steps = after.steps_total - before.steps_total, after.lane_steps_total - before.lane_steps_total
    assert lane_steps / steps > 3, "the lanes did not share their steps"
    assert_close(alone + together, expected)


def test_sd15(engine: Engine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline) -> None:
    plain = quiet(StableDiffusionImg2ImgPipeline(**sd15_pipeline.components, requires_safety_checker=False))
    masking = quiet(StableDiffusionInpaintPipeline(**sd15_pipeline.components, requires_safety_checker=False))
    requests = requests_for("sd15", tuple(SCHEDULERS), STRENGTHS)
    check(engine, run_together, plain, masking, requests)


ENLARGED: dict[str, dict[str, Any]] = {
    "latent": {"mode": "bilinear"},
    "latent_antialiased": {"mode": "bilinear", "antialias": True},
    "latent_bicubic": {"mode": "bicubic"},
    "latent_bicubic_antialiased": {"mode": "bicubic", "antialias": True},
    "latent_nearest": {"mode": "nearest"},
    "latent_nearest_exact": {"mode": "nearest-exact"},
}


def test_a_second_pass_over_enlarged_latents(
    engine: Engine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline
) -> None:
    """As by hand: a call of the first pipeline, its latents resized, a call of the second."""
    img2img = quiet(StableDiffusionImg2ImgPipeline(**sd15_pipeline.components, requires_safety_checker=False))
    one_pass = DenoiseRequest(
        "one",
        "sd15",
        seed=7,
        steps=5,
        guidance_scale=3.0,
        width=48,
        height=SIZE,
        sampler="dpmpp_2m",
        output="latents",
    )
    text = encode(sd15_pipeline, one_pass)
    (first,) = run_together(engine, [(one_pass, text)])
    by_hand = reference(sd15_pipeline, one_pass, seeded(one_pass), height=SIZE, width=48)
    assert_close([first], {"one": by_hand})
    requests = [
        dataclasses.replace(
            one_pass,
            lane_id=name,
            width=72,
            height=96,
            steps=8,
            sampler=sampler,
            strength=0.6,
            latents=first.latents,
            enlarge=name,
        )
        for name, sampler in zip(ENLARGED, (*SOME_SAMPLERS, "euler"), strict=True)
    ]
    expected = {
        one.lane_id: reference(
            img2img,
            one,
            seeded(one),
            image=torch.nn.functional.interpolate(by_hand[None], size=(12, 9), **ENLARGED[one.lane_id]),
            strength=one.strength,
        )
        for one in requests
    }
    results = [run_together(engine, [(one, text)])[0] for one in requests]
    together = [(dataclasses.replace(one, reproducible=True), text) for one in requests]
    assert_close([*results, *run_together(engine, together)], expected)


def test_nine_channels(engine: Engine, run_together: RunTogether, inpainting: Any) -> None:
    requests = [one for one in requests_for("inpainting", SOME_SAMPLERS, STRENGTHS) if one.mask is not None]
    check(engine, run_together, None, inpainting, requests)


def test_sdxl(engine: Engine, run_together: RunTogether, sdxl_pipeline: StableDiffusionXLPipeline) -> None:
    components = {**sdxl_pipeline.components, "add_watermarker": False}
    plain = quiet(StableDiffusionXLImg2ImgPipeline(**components))
    masking = quiet(StableDiffusionXLInpaintPipeline(**components))
    check(engine, run_together, plain, masking, requests_for("sdxl", SOME_SAMPLERS, STRENGTHS))


def test_a_refiner_after_img2img(
    engine: Engine, run_together: RunTogether, sdxl_pipeline: StableDiffusionXLPipeline, refiner: Any
) -> None:
    """One generator through both stages, as a diffusers user passes it."""
    base = quiet(StableDiffusionXLImg2ImgPipeline(**{**sdxl_pipeline.components, "add_watermarker": False}))
    for request in requests_for("sdxl", ("euler", "euler_a", "dpmpp_2m"), (0.8,), denoising_end=0.7):
        if request.mask is not None:
            continue
        generator = seeded(request)
        image = Image.fromarray(PICTURE)
        latents = reference(base, request, generator, image=image, strength=0.8, denoising_end=0.7)
        finished = reference(refiner, request, generator, image=latents[None], denoising_start=0.7)
        text = encode(sdxl_pipeline, request)
        (given,) = run_together(engine, [(request, text)])
        assert_close([given], {request.lane_id: latents})
        (refined,) = run_together(engine, [(handed_over(request, given), text)])
        assert_close([refined], {request.lane_id: finished})


def first_draws(vae: Any, request: DenoiseRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture's latents and the noise, (1, channels, height, width), as an img2img pipeline draws them."""
    generator = seeded(request)
    pixels = torch.from_numpy(PICTURE).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with torch.no_grad():
        clean = vae.encode(pixels).latent_dist.sample(generator) * vae.config.scaling_factor
    return clean, torch.randn(clean.shape, generator=generator)


def handed_over(request: DenoiseRequest, given: DenoiseResult) -> DenoiseRequest:
    return dataclasses.replace(
        request,
        checkpoint="refiner",
        strength=None,
        denoising_start=0.7,
        denoising_end=1.0,
        latents=given.latents,
        generator_state=given.generator_state,
    )


def test_a_refiner_keeps_what_the_base_kept(
    engine: Engine, run_together: RunTogether, sdxl_pipeline: StableDiffusionXLPipeline, refiner: Any
) -> None:
    """What diffusers has no pipeline for: its inpainting refiner takes the noisy latents for the picture.

    Here the refiner is diffusers', and a callback puts the picture back, under the noise that the base began with.
    """
    _, request = requests_for("sdxl", ("dpmpp_2m",), (1.0,), denoising_end=0.7)
    text = encode(sdxl_pipeline, request)
    (given,) = run_together(engine, [(request, text)])
    assert given.latents is not None
    (refined,) = run_together(engine, [(handed_over(request, given), text)])

    clean, noise = first_draws(refiner.vae, request)
    mask = torch.from_numpy(MASK[::8, ::8] >= 128).float()

    def put_back(pipe: Any, step: int, timestep: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scheduler = pipe.scheduler
        left = scheduler.timesteps[scheduler.step_index :]
        kept = scheduler.add_noise(clean, noise, left[:1]) if len(left) else clean
        return {"latents": (1 - mask) * kept + mask * inputs["latents"]}

    goes_on = torch.Generator()
    goes_on.set_state(torch.from_numpy(np.array(given.generator_state)))
    latents = torch.from_numpy(given.latents)[None]
    expected = reference(refiner, request, goes_on, image=latents, denoising_start=0.7, callback_on_step_end=put_back)
    assert_close([refined], {request.lane_id: expected})
    assert refined.latents is not None
    kept = np.broadcast_to(MASK[::8, ::8] < 128, refined.latents.shape)
    np.testing.assert_allclose(refined.latents[kept], clean[0].numpy()[kept], atol=1e-5)


def test_the_base_hands_over_what_is_kept_as_noisy_as_the_rest(
    engine: Engine, run_together: RunTogether, sdxl_pipeline: StableDiffusionXLPipeline
) -> None:
    _, request = requests_for("sdxl", ("euler",), (1.0,), denoising_end=0.7)
    (given,) = run_together(engine, [(request, encode(sdxl_pipeline, request))])
    scheduler = diffusers.EulerDiscreteScheduler.from_config(sdxl_pipeline.scheduler.config)
    scheduler.set_timesteps(request.steps)
    sigma = float(scheduler.sigmas[int((scheduler.timesteps >= 300).sum())])
    assert sigma > 0.1
    clean, noise = first_draws(sdxl_pipeline.vae, request)
    assert given.latents is not None
    kept = np.broadcast_to(MASK[::8, ::8] < 128, given.latents.shape)
    np.testing.assert_allclose(given.latents[kept], (clean + sigma * noise)[0].numpy()[kept], atol=1e-4)


def test_an_inpainting_checkpoint_draws_without_image_and_mask(
    engine: Engine, run_together: RunTogether, inpainting: Any
) -> None:
    _, masked = requests_for("inpainting", ("ddim",), (1.0,))
    text_only = dataclasses.replace(masked, image=None, mask=None, strength=None)
    without_mask = dataclasses.replace(masked, mask=None, strength=0.5)
    results = run_together(engine, [(one, encode(inpainting, one)) for one in (text_only, without_mask)])
    grey, everything = Image.new("RGB", (SIZE, SIZE), (128, 128, 128)), Image.new("L", (SIZE, SIZE), 255)
    expected = reference(
        inpainting,
        text_only,
        seeded(text_only),
        image=grey,
        mask_image=everything,
        height=SIZE,
        width=SIZE,
        strength=1.0,
    )
    assert_close(results[:1], {masked.lane_id: expected})
    assert results[1].latents is not None
