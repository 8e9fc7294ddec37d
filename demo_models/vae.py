"""The autoencoder all demo checkpoints share: 8x smaller, four channels, all styles.

Trained on crops of drawings. Three of the four latent channels start out as the small picture itself,
which keeps the latents easy to denoise; the fourth is left for edges.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from demo_models.drawing import STYLES, Picture, draw
from demo_models.loop import Loss, Step
from demo_models.scenes import Scene, training_scene

SIZES = ((256, 256), (256, 256), (192, 256), (256, 192), (128, 128), (320, 320), (448, 448))
CROP = 96
BATCH = 8
EDGE_WEIGHT = 4.0
KL_WEIGHT = 5e-4
SMALL_PICTURE_GAIN = 1.5


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder, initialised so that it leaves its first plateau early."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=256,
    )
    with torch.no_grad():
        for name, part in vae.named_modules():
            if isinstance(part, nn.Conv2d):
                _initialise(name, part)
        # Only the variance half: close to a plain autoencoder at first.
        vae.quant_conv.bias[4:] = -6.0
        vae.quant_conv.weight[4:] *= 0.1
    _silence_attention(vae)
    return vae


def _initialise(name: str, conv: nn.Conv2d) -> None:
    if name.endswith("conv_in"):
        # A spread of biases, or the global norms that follow erase a flat picture's colour.
        assert conv.bias is not None  # noqa: S101  (diffusers builds these with a bias)
        conv.bias.zero_()
        conv.bias[::4] = 2.0
        conv.bias[2::4] = -2.0
    elif name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
        nn.init.dirac_(conv.weight)
        conv.weight.add_(torch.randn_like(conv.weight) * 0.02)
    elif name.endswith("conv_shortcut"):
        wide = conv.out_channels > conv.in_channels
        eye = torch.eye(conv.out_channels, conv.in_channels)
        if wide:
            again = torch.eye(conv.in_channels).repeat(conv.out_channels // conv.in_channels + 1, 1)
            eye = eye + 0.5 * again[: conv.out_channels]
        conv.weight.copy_(eye[:, :, None, None])


def _silence_attention(vae: AutoencoderKL) -> None:
    """Hold the two middle attentions at zero: decoding then looks the same at every size."""
    for coder in (vae.encoder, vae.decoder):
        attention = coder.mid_block.attentions[0]
        attention.requires_grad_(False)
        with torch.no_grad():
            attention.to_out[0].weight.zero_()
            attention.to_out[0].bias.zero_()


def as_tensor(pictures: list[Picture]) -> Tensor:
    """Pictures as a batch in -1..1."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return batch.div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def as_pictures(batch: Tensor) -> list[Picture]:
    pixels = batch.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).cpu().numpy())


def _crop(step: Step, scene: Scene, size: int) -> NDArray[np.uint8]:
    rng = step.words
    height, width = rng.choice(SIZES)
    picture = draw(scene, height, width, rng, rng.choices(STYLES, (0.5, 0.25, 0.25))[0])
    # Most crops look at a shape: plain background teaches nothing after a while.
    x, y = scene.anchor(rng.choice(scene.objects)) if rng.random() < 0.8 else (rng.random(), rng.random())
    spread = 0.15
    left = round((x + rng.uniform(-spread, spread)) * width - size / 2)
    top = round((y + rng.uniform(-spread, spread)) * height - size / 2)
    left, top = max(0, min(width - size, left)), max(0, min(height - size, top))
    return picture[top : top + size, left : left + size]


def _slopes(batch: Tensor) -> tuple[Tensor, Tensor]:
    return batch[..., 1:, :] - batch[..., :-1, :], batch[..., :, 1:] - batch[..., :, :-1]


def vae_loss(vae: AutoencoderKL, device: str) -> Loss:
    """Edge-weighted L1 and L1 of the slopes, a little KL, and a fading tie to the small picture."""

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        # Small crops until the plateau is left behind: they are cheaper and steeper.
        size, batch = (64, 2 * BATCH) if step.progress < 0.25 else (CROP, BATCH)
        x = as_tensor([_crop(step, training_scene(step.words), size) for _ in range(batch)]).to(device)
        posterior = vae.encode(x).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
        noise = torch.randn(mean.shape, generator=step.noise).to(device)
        y = vae.decode(mean + noise * (0.5 * logvar).exp()).sample
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        reach = (F.max_pool2d(x, 5, 1, 2) + F.max_pool2d(-x, 5, 1, 2)).amax(1, keepdim=True)
        weight = 1 + EDGE_WEIGHT * (reach > 0.15).float()
        error = ((y - x).abs() * weight).mean()
        slope = sum(
            ((a - b).abs().mean() for a, b in zip(_slopes(x), _slopes(y), strict=True)),
            torch.zeros((), device=x.device),
        )
        tie = (mean[:, :3] - SMALL_PICTURE_GAIN * F.avg_pool2d(x, 8)).square().mean()
        loss = max(0.02, 1 - step.progress / 0.35) * tie + error + slope + KL_WEIGHT * kl
        psnr = -10 * torch.log10((y.detach().clamp(-1, 1) - x).square().mean() / 4)
        return loss, {"psnr": psnr, "tie": tie.detach(), "kl": kl.detach()}

    return loss_of
