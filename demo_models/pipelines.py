"""Paints prompts with a packaged checkpoint's stock pipeline, as a user of diffusers would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPVisionModelWithProjection

from demo_models import IMAGE_ENCODER, IP_ADAPTERS, ip_adapter, path
from demo_models.drawing import Picture
from demo_models.image_encoder import encoder_input
from demo_models.latents import Size
from demo_models.vae import as_pictures

SAMPLERS: dict[str, Any] = {
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
}
REFINE_FROM = 0.8
"""The refiner takes over for the last fifth of the noise."""
CLASSES: dict[str, Any] = {
    "demo-sdxl": StableDiffusionXLPipeline,
    "demo-sdxl-refiner": StableDiffusionXLImg2ImgPipeline,
}


@dataclass(frozen=True, slots=True)
class Painter:
    """A pipeline, or base and refiner, with everything but prompt, size and seed decided."""

    base: Any
    refiner: Any | None
    how: str
    steps: int
    guidance: float

    def __call__(self, prompts: list[str], size: Size, seeds: list[int]) -> list[Picture]:
        """One picture a prompt, each from its own seed."""
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        shared = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "output_type": "pt"}
        sized = {"height": size[0], "width": size[1]}
        if self.refiner is None:
            found = self.base(prompts, generator=noise, **sized, **shared).images
        else:
            half = {**shared, "output_type": "latent"}
            latents = self.base(prompts, generator=noise, denoising_end=REFINE_FROM, **sized, **half).images
            found = self.refiner(prompts, image=latents, denoising_start=REFINE_FROM, **shared).images
        return as_pictures(found * 2 - 1)


@dataclass(frozen=True, slots=True)
class ShownPainter:
    """demo-sd15 with its IP-Adapter, with everything but prompt, reference picture, scale and seed decided."""

    pipeline: StableDiffusionPipeline
    encoder: CLIPVisionModelWithProjection
    how: str
    steps: int
    guidance: float

    def __call__(
        self, prompts: list[str], references: list[Picture], scale: float, size: Size, seeds: list[int]
    ) -> list[Picture]:
        """One picture a prompt, each shown a reference of its own, in a call of its own: a call shows all the same."""
        with torch.inference_mode():
            embeds = self.encoder(encoder_input(references)).image_embeds[:, None]
        self.pipeline.set_ip_adapter_scale(scale)
        found = [
            self.pipeline(
                prompt,
                ip_adapter_image_embeds=[torch.stack([torch.zeros_like(embed), embed])],
                generator=torch.Generator().manual_seed(seed),
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                height=size[0],
                width=size[1],
                output_type="pt",
            ).images
            for prompt, embed, seed in zip(prompts, embeds, seeds, strict=True)
        ]
        return as_pictures(torch.cat(found) * 2 - 1)


def shown_painter(sampler: str, steps: int, guidance: float) -> ShownPainter:
    pipeline = load("demo-sd15", sampler)
    file = f"{ip_adapter.NAME}.safetensors"
    pipeline.load_ip_adapter(str(path(IP_ADAPTERS)), subfolder="", weight_name=file, image_encoder_folder=None)
    encoder = CLIPVisionModelWithProjection.from_pretrained(path(IMAGE_ENCODER), dtype=torch.float32)
    return ShownPainter(pipeline, encoder, sampler, steps, guidance)


def load(name: str, sampler: str | None = None) -> Any:
    """A packaged pipeline in fp32, with its own scheduler or a named sampler's."""
    # SDXL's pipelines mark pictures where invisible-watermark is installed, and refuse small ones
    unmarked = {"add_watermarker": False} if name in CLASSES else {}
    loaded = CLASSES.get(name, StableDiffusionPipeline).from_pretrained(path(name), dtype=torch.float32, **unmarked)
    if sampler is not None:
        loaded.scheduler = SAMPLERS[sampler].from_config(loaded.scheduler.config)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def painter_of(name: str, sampler: str, steps: int, guidance: float) -> Painter:
    """The refiner paints behind the base; the others paint alone."""
    if name == "demo-sdxl-refiner":
        how = f"{sampler}, demo-sdxl up to {REFINE_FROM:g}, then the refiner"
        return Painter(load("demo-sdxl", sampler), load(name, sampler), how, steps, guidance)
    return Painter(load(name, sampler), None, sampler, steps, guidance)
