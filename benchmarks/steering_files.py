"""Writes files that steer an image, with random weights for a UNet: what they cost doesn't depend on the numbers.

loras/        lora, dora, loha, lokr (attention layers) and locon (all layers), each of rank RANK
controlnets/  controlnet
ip-adapters/  ip-adapter, whose pictures' features have FEATURES channels
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch.nn import Conv2d, Linear

RANK = 16
FEATURES = 1024
ADAPTERS = ("lora", "dora", "loha", "lokr", "locon")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TOKENS = 4  # that an IP-Adapter makes of a picture
_FACTOR = 8  # rows of a Kronecker product's smaller matrix, at most


def write_all(folder: Path, unet: Any) -> None:
    """Write them into subfolders of `folder`; `unet` may be on the meta device."""
    for name in ("loras", "controlnets", "ip-adapters"):
        (folder / name).mkdir()
    for kind in ADAPTERS:
        save_file(dict(_adapter(kind, unet)), folder / "loras" / f"{kind}.safetensors")
    save_file(dict(_ip_adapter(unet)), folder / "ip-adapters" / "ip-adapter.safetensors")
    controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    controlnet.save_pretrained(folder / "controlnets" / "controlnet")


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float32) * 0.01


def _adapter(kind: str, unet: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an adapter, in the names of kohya's scripts."""
    for name, layer in unet.named_modules():
        if not isinstance(layer, (Linear, Conv2d)) or (kind != "locon" and not name.endswith(_ATTENTION)):
            continue
        key = f"lora_unet_{name.replace('.', '_')}"
        out, inner, *kernel = layer.weight.shape
        if kind == "loha":
            for number in (1, 2):
                yield f"{key}.hada_w{number}_a", _random(out, RANK)
                yield f"{key}.hada_w{number}_b", _random(RANK, inner)
        elif kind == "lokr":
            factor = math.gcd(_FACTOR, out, inner)
            yield f"{key}.lokr_w1", _random(factor, factor)
            yield f"{key}.lokr_w2", _random(out // factor, inner // factor)
        else:
            yield f"{key}.lora_down.weight", _random(RANK, inner, *kernel)
            yield f"{key}.lora_up.weight", _random(out, RANK, *(1 for _ in kernel))
        if kind == "dora":
            yield f"{key}.dora_scale", torch.ones(out, 1, dtype=torch.float32)
        yield f"{key}.alpha", torch.tensor(float(RANK), dtype=torch.float32)


def _ip_adapter(unet: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a plain IP-Adapter, in h94's layout."""
    context = int(unet.config.cross_attention_dim)
    yield "image_proj.proj.weight", _random(_TOKENS * context, FEATURES)
    yield "image_proj.proj.bias", _random(_TOKENS * context)
    yield "image_proj.norm.weight", torch.ones(context, dtype=torch.float32)
    yield "image_proj.norm.bias", torch.zeros(context, dtype=torch.float32)
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(layers):
        channels = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for way in ("k", "v"):
            yield f"ip_adapter.{2 * number + 1}.to_{way}_ip.weight", _random(channels, context)
