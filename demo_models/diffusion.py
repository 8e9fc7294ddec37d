"""Trains a UNet to predict the noise in latents, whatever it is conditioned on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from demo_models.captions import caption
from demo_models.conditioning import Conditioner
from demo_models.controlnet import Controlled
from demo_models.ip_adapter import Shown
from demo_models.latents import Size, training_scene_of
from demo_models.loop import Loss, Step

TIMESTEPS = 1000
BETAS = (0.00085, 0.012)
NO_CAPTION = 0.1
OFFSET_NOISE = 0.15
SNR_LIMIT = 5.0
SMALL: Size = (128, 128)
MIX: dict[Size, float] = {
    (256, 256): 0.50,
    (192, 256): 0.13,
    (256, 192): 0.13,
    (320, 320): 0.07,
    (192, 192): 0.05,
    (128, 128): 0.06,
}
"""How often a step of the last stage trains on a size."""

Caption = Callable[[int, Size, random.Random], str]
"""From a latent's number and size to a sentence about it."""
Hints = Callable[[list[int], Size, random.Random], Tensor]
"""From latents' numbers and their size to what a ControlNet or an IP-Adapter sees of them."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a UNet trains on: the share of steps spent on small pictures first, and the noise levels."""

    small_share: float = 0.0
    batch_pixels: int = 16 * 256 * 256
    small_batch: int = 32
    timesteps: int = TIMESTEPS
    low_share: float = 0.0
    low_timesteps: int = TIMESTEPS
    """`low_share` of the samples come from below `low_timesteps`."""

    def scaled(self, times: int) -> Course:
        return replace(self, batch_pixels=times * self.batch_pixels, small_batch=times * self.small_batch)


def signal_shares() -> Tensor:
    """The share of signal left at every timestep: Stable Diffusion's scaled-linear schedule."""
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMESTEPS) ** 2
    return torch.cumprod(1 - betas, 0)


def _likelihoods(signal: Tensor, course: Course) -> Tensor:
    """Timesteps in proportion to min-SNR, so that the easy low-noise ones don't eat the steps."""
    snr = signal / (1 - signal)
    wanted = (snr.clamp(max=SNR_LIMIT) / snr).clamp(min=0.12)
    wanted[course.timesteps :] = 0
    wanted /= wanted.sum()
    if course.low_share:
        low = torch.zeros_like(wanted)
        low[: course.low_timesteps] = 1 / course.low_timesteps
        wanted = (1 - course.low_share) * wanted + course.low_share * low
    return wanted


def _plain_caption(number: int, size: Size, rng: random.Random) -> str:
    return caption(training_scene_of(number, size), rng)


def noise_loss(
    unet: UNet2DConditionModel | Controlled | Shown,
    latents: dict[Size, Tensor],
    conditioner: Conditioner,
    course: Course,
    device: str,
    captioned: Caption = _plain_caption,
    hints: Hints | None = None,
) -> Loss:
    """Mean squared error of the predicted noise, weighted towards high noise.

    hints: for a Controlled UNet, or for one that is Shown pictures.
    """
    signal = signal_shares()
    likely = _likelihoods(signal, course)
    weight = (1 / signal).clamp(max=SNR_LIMIT)
    weight = weight / (weight * likely).sum()
    sizes = [size for size in MIX if size in latents]
    chances = [MIX[size] for size in sizes]

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        rng, noise = step.words, step.noise
        if step.progress < course.small_share:
            size, batch = SMALL, course.small_batch
        else:
            size = rng.choices(sizes, chances)[0]
            batch = min(2 * course.small_batch, course.batch_pixels // (size[0] * size[1]))
        pool = latents[size]
        numbers = [rng.randrange(len(pool)) for _ in range(batch)]
        texts = ["" if rng.random() < NO_CAPTION else captioned(number, size, rng) for number in numbers]
        given = conditioner(texts, size, rng)
        clean = pool[numbers].float()
        t = torch.multinomial(likely, batch, replacement=True, generator=noise)
        offset = torch.rand(batch, 1, 1, 1, generator=noise) * torch.randn(batch, 4, 1, 1, generator=noise)
        eps = torch.randn(clean.shape, generator=noise) + OFFSET_NOISE * offset
        share = signal[t].view(-1, 1, 1, 1)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * eps
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        shown = {} if hints is None else {"hint": hints(numbers, size, rng).to(device)}
        guess = unet(noisy, t.to(device), given.states, added_cond_kwargs=given.added, return_dict=False, **shown)[0]
        errors = (guess - eps.to(device)).square().mean((1, 2, 3))
        loss = (errors * weight[t].to(device)).mean()
        low, high = t < 250, t >= 500
        return loss, {"low": _mean(errors, low), "high": _mean(errors, high)}

    return loss_of


def _mean(errors: Tensor, chosen: Tensor) -> Tensor:
    found = errors.detach()[chosen.to(errors.device)]
    return found.mean() if len(found) else torch.zeros(())
