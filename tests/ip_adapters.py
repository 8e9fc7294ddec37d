"""IP-Adapters with random weights for a UNet, in the layout of h94/IP-Adapter, and a tiny image encoder."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

PROJECTION, PATCHES, SIZE = 24, 32, 32
Kind = Literal["base", "plus", "full"]
_RESAMPLER_HEAD = 64  # diffusers' loader counts the heads by it


def write_image_encoder(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=PATCHES,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
        projection_dim=PROJECTION,
    )
    CLIPVisionModelWithProjection(config).eval().save_pretrained(folder)
    return folder


def write_ip_adapter(path: Path, unet: Any, kind: Kind = "base", seed: int = 0) -> Path:
    """As the trainers of h94's write them: projection, then keys and values numbered 1, 3, 5, ... over the UNet."""
    generator = torch.Generator().manual_seed(seed)
    context = int(unet.config.cross_attention_dim)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    projection = {
        "base": lambda: _base(context, matrix),
        "plus": lambda: _plus(context, matrix),
        "full": lambda: _full(context, matrix),
    }[kind]()
    tensors = {f"image_proj.{name}": tensor for name, tensor in projection.items()}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(names):
        channels = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        tensors[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"] = matrix(channels, context)
        tensors[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"] = matrix(channels, context)
    save_file(tensors, path)
    return path


def _base(context: int, matrix: Any) -> dict[str, torch.Tensor]:
    return {"proj.weight": matrix(4 * context, PROJECTION), "proj.bias": matrix(4 * context), **_norm("norm", context)}


def _full(context: int, matrix: Any) -> dict[str, torch.Tensor]:
    return {
        "proj.0.weight": matrix(PATCHES, PATCHES),
        "proj.0.bias": matrix(PATCHES),
        "proj.2.weight": matrix(context, PATCHES),
        "proj.2.bias": matrix(context),
        **_norm("proj.3", context),
    }


def _plus(context: int, matrix: Any, hidden: int = _RESAMPLER_HEAD, queries: int = 6) -> dict[str, torch.Tensor]:
    tensors = {
        "latents": matrix(1, queries, hidden),
        "proj_in.weight": matrix(hidden, PATCHES),
        "proj_in.bias": matrix(hidden),
        "proj_out.weight": matrix(context, hidden),
        "proj_out.bias": matrix(context),
        **_norm("norm_out", context),
    }
    for layer in range(4):  # of all published ones, and diffusers' class has no other number
        at = f"layers.{layer}"
        tensors |= {
            **_norm(f"{at}.0.norm1", hidden),
            **_norm(f"{at}.0.norm2", hidden),
            f"{at}.0.to_q.weight": matrix(hidden, hidden),
            f"{at}.0.to_kv.weight": matrix(2 * hidden, hidden),
            f"{at}.0.to_out.weight": matrix(hidden, hidden),
            **_norm(f"{at}.1.0", hidden),
            f"{at}.1.1.weight": matrix(4 * hidden, hidden),
            f"{at}.1.3.weight": matrix(hidden, 4 * hidden),
        }
    return tensors


def _norm(name: str, channels: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)}
