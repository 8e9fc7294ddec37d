"""Writes LoRA files as trainers do, random ones, and models whose weights have them merged in: what a LoRA means."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
UNET_LAYERS = (
    r"attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|proj_(in|out)|conv\d?|conv_shortcut|time_emb_proj|conv_in"
)
TEXT_LAYERS = r"(q|k|v|out)_proj|fc1|fc2"


class Update(NamedTuple):
    """What a LoRA changes of one layer."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float


Updates = Mapping[str, Update]  # by the module's name
Parts = Mapping[str, Updates]  # by "unet", "text_encoder", "text_encoder_2"


def random_updates(model: torch.nn.Module, layers: str, *, seed: int, rank: int = 3, size: float = 0.3) -> Updates:
    """For all layers whose names end so: updates of about `size` times the weights."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim not in (2, 4) or re.search(rf"(^|\.)({layers})$", name) is None:
            continue
        out, *rest = weight.shape
        down = torch.randn(rank, *rest, generator=generator)
        up = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=generator)
        found[name] = Update(down, up * size * weight.std().item() / rank**0.5 * rank / 2.0, alpha=2.0)
    assert found, layers
    return found


def merged(model: torch.nn.Module, *worn: tuple[Updates, float]) -> torch.nn.Module:
    """A copy of the model with weight * alpha / rank * up @ down added to its weights."""
    changed = copy.deepcopy(model)
    modules = dict(changed.named_modules())
    with torch.no_grad():
        for updates, weight in worn:
            for name, (down, up, alpha) in updates.items():
                difference = torch.einsum("or,r...->o...", up.flatten(1), down)
                modules[name].weight += weight * alpha / down.shape[0] * difference
    return changed


def write_kohya(path: Path, parts: Parts) -> Path:
    """As kohya's scripts do, with diffusers' names for the UNet's layers."""
    tensors = {}
    for part, updates in parts.items():
        for name, (down, up, alpha) in updates.items():
            key = KOHYA[part] + _trained(part, name).replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return write(path, tensors)


def write_peft(path: Path, parts: Parts) -> Path:
    """As diffusers does it today; it keeps no alphas, so they are put into the matrices."""
    tensors = {}
    for part, updates in parts.items():
        for name, (down, up, alpha) in updates.items():
            key = f"{part}.{_trained(part, name)}"
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": alpha / down.shape[0] * up}
    return write(path, tensors)


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Any tensors, also such as share their memory."""
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def _trained(part: str, name: str) -> str:
    """A text encoder's outermost level is in trainers' names, whichever transformers class leaves it out."""
    return name if part == "unet" or name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"
