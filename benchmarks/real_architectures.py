"""The published architectures of SD1.5, SDXL base and SDXL refiner, with random weights: real sizes, no download.

Knows configurations; nothing of engines or of what is measured. The values are those of the published
unet/config.json, vae/config.json and scheduler_config.json; where a file leaves a value to diffusers, so does this.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.workload import TOKENS
from deployments.engine.checkpoints.configs import Architecture
from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES
from deployments.engine.memory.offload import Placement

_DOWN, _CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

UNETS: Mapping[FamilyName, Mapping[str, Any]] = {
    "sd15": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
        "up_block_types": (_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN),
        "up_block_types": (_CROSS_UP, _CROSS_UP, _UP),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl-refiner": {
        "sample_size": 128,
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
        "up_block_types": (_UP, _CROSS_UP, _CROSS_UP, _UP),
        "attention_head_dim": (6, 12, 24, 24),
        "transformer_layers_per_block": 4,
        "use_linear_projection": True,
        "cross_attention_dim": 1280,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}

_VAE: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_SDXL_VAE = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
VAES: Mapping[FamilyName, Mapping[str, Any]] = {
    # force_upcast is for SDXL: its default is True where a file is silent, and diffusers' SD1.5 pipelines don't read it
    "sd15": {**_VAE, "sample_size": 512, "scaling_factor": 0.18215, "force_upcast": False},
    "sdxl": _SDXL_VAE,
    "sdxl-refiner": _SDXL_VAE,
}

_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
_EULER = {
    "_class_name": "EulerDiscreteScheduler",
    **_BETAS,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "clip_sample": False,
}
SCHEDULERS: Mapping[FamilyName, Mapping[str, Any]] = {
    "sd15": {
        "_class_name": "PNDMScheduler",
        **_BETAS,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sdxl": _EULER,
    "sdxl-refiner": _EULER,
}


def random_denoiser(spec: CheckpointSpec, device: torch.device, dtype: torch.dtype, seed: int = 0) -> DenoiserWeights:
    """The real architecture of the spec's family, filled on the device in `dtype`: an Engine's `load`.

    The same device, type, seed and torch release give the same weights; on the meta device they are shapes alone. The
    spec's source isn't looked at.
    """
    unet = _filled(UNet2DConditionModel, UNETS[spec.family], device, dtype, seed=2 * seed)
    vae = _filled(AutoencoderKL, VAES[spec.family], device, dtype, seed=2 * seed + 1)
    if device.type != "meta":
        _to_unit_output(unet, spec.family)
    return DenoiserWeights(
        unet=unet,
        vae=vae,
        placement=Placement(unet, vae, device),
        scheduler_config=dict(SCHEDULERS[spec.family]),
        force_zeros_for_empty_prompt=FAMILIES[spec.family].zeroes_empty_negative,
        hash=f"random-{spec.family}",
        family=FAMILIES[spec.family],
    )


def random_architecture(spec: CheckpointSpec) -> Architecture:
    """What `random_denoiser` makes: an Engine's `describe`."""
    return Architecture(UNETS[spec.family], VAES[spec.family], len(FAMILIES[spec.family].time_ids))


def unet_inputs(
    unet: UNet2DConditionModel, family: FamilyName, rows: int, height: int, width: int, seed: int = 0
) -> dict[str, Any]:
    """Random arguments for one UNet forward, on its device and in its type; height and width in latent cells."""
    generator = None if unet.device.type == "meta" else torch.Generator(unet.device).manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=unet.device, dtype=unet.dtype)

    config = unet.config
    pooled = pooled_channels(config, family)
    inputs: dict[str, Any] = {
        "sample": random(rows, config.in_channels, height, width),
        "timestep": torch.full((rows,), 500.0, device=unet.device),
        "encoder_hidden_states": random(rows, TOKENS, config.cross_attention_dim),
    }
    if pooled is not None:
        inputs["added_cond_kwargs"] = {
            "text_embeds": random(rows, pooled),
            "time_ids": torch.full(
                (rows, len(FAMILIES[family].time_ids)), 1024.0, device=unet.device, dtype=unet.dtype
            ),
        }
    return inputs


def pooled_channels(unet_config: Mapping[str, Any], family: FamilyName) -> int | None:
    """Channels of the pooled embedding that a UNet takes; None for a family that takes none."""
    time_ids = FAMILIES[family].time_ids
    if not time_ids:
        return None
    ids = len(time_ids) * int(unet_config["addition_time_embed_dim"])
    return int(unet_config["projection_class_embeddings_input_dim"]) - ids


def _filled(architecture: Any, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """A module made without memory, then filled where it will run.

    Weights have the variance of torch's own initialisation (1 / 3 of the fan-in's inverse), biases are zero:
    activations stay in float16's range, and rounding isn't multiplied from layer to layer.
    """
    with torch.device("meta"):
        module = architecture(**config).eval().requires_grad_(False)
    torch.nn.Module.to(
        module, dtype
    )  # diffusers' own `to` warns of modules to keep in float32, of which there are none
    if device.type == "meta":
        return module
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for part in module.modules():
        norm = isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm)
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                parameter.normal_(0.0, (3 * parameter[0].numel()) ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if norm and name == "weight" else 0.0)
    return module


@torch.no_grad()
def _to_unit_output(unet: UNet2DConditionModel, family: FamilyName) -> None:
    """Scale the last convolution so that the output has a standard deviation of 1, as noise has."""
    output = unet(**unet_inputs(unet, family, 1, 32, 32), return_dict=False)[0]
    unet.conv_out.weight.div_(output.float().std().to(unet.dtype))
