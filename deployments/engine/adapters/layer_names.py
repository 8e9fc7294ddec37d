"""Names of a model's layers, as LoRA files have them: diffusers' and those of the original Stable Diffusion code."""

import re
from collections.abc import Mapping

import torch
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear

Layer = Linear | Conv2d | GroupNorm | LayerNorm

# parts of a UNet's layer names, as diffusers and as the original Stable Diffusion code name them
_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_layers(unet: torch.nn.Module) -> Mapping[str, Layer]:
    """The layers of a UNet2DConditionModel that a LoRA may change, by each of their names.

    Trainers name them as diffusers does or, for SDXL, as the original Stable Diffusion code does.
    """
    modules = dict(unet.named_modules())
    layers_per_block = sum(re.fullmatch(r"down_blocks\.0\.resnets\.\d+", name) is not None for name in modules)
    layers: dict[str, Layer] = {}
    for name, module in modules.items():
        if isinstance(module, Layer):
            original = _original(name, layers_per_block, modules)
            layers |= dict.fromkeys((_joined(name), *([] if original is None else [original])), module)
    return layers


def text_layers(encoder: torch.nn.Module) -> Mapping[str, Layer]:
    """The layers of a CLIP text encoder by name; some of transformers' classes omit the outermost level."""
    return {
        _joined(name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"): module
        for name, module in encoder.named_modules()
        if isinstance(module, Layer)
    }


def _original(name: str, layers_per_block: int, modules: Mapping[str, object]) -> str | None:
    """A layer's name in the original code, which numbers the parts of all blocks consecutively."""
    if name in _OUTER:
        return _OUTER[name]
    middle = _MIDDLE.fullmatch(name)
    if middle is not None:
        kind, number, rest = middle.groups()
        place = 2 * int(number) if kind == "resnets" else 1
        return f"middle_block_{place}_{_inner(kind, rest)}"
    block = _BLOCK.fullmatch(name)
    if block is None:
        return None
    way, index, kind, number, rest = block.groups()
    first = int(index) * (layers_per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks_{first + layers_per_block + 1}_0_op"
    if kind == "upsamplers":
        behind = 2 if f"up_blocks.{index}.attentions" in modules else 1
        return f"output_blocks_{first + layers_per_block}_{behind}_conv"
    place = first + int(number) + (1 if way == "down" else 0)
    return f"{'input' if way == 'down' else 'output'}_blocks_{place}_{kind == 'attentions':d}_{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    return _RESNET.get(rest, _joined(rest)) if kind == "resnets" else _joined(rest)


def _joined(name: str) -> str:
    return name.replace(".", "_")
