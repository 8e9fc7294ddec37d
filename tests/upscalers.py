"""Tiny upscalers with random weights, as the files of ESRGAN's family have them."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from deployments.engine.upscaling.spandrel_import import esrgan_family

esrgan_family()  # so that spandrel is there, with or without torchvision

from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402


def tiny_esrgan(seed: int, *, scale: int = 4, shuffle: int | None = None) -> ESRGAN:
    """Two blocks; shuffle: so many pixels each way are shown to it as one."""
    torch.manual_seed(seed)
    channels = 3 * (shuffle or 1) ** 2
    made = scale * (shuffle or 1)
    model = ESRGAN(in_nc=channels, out_nc=3, num_filters=8, num_blocks=2, scale=made, shuffle_factor=shuffle)
    return model.eval().requires_grad_(False)


def tiny_compact(seed: int, *, scale: int = 4) -> Compact:
    torch.manual_seed(seed)
    return Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=scale).eval().requires_grad_(False)


def write(file: Path, model: torch.nn.Module) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    return file


def write_later_names(file: Path, model: torch.nn.Module) -> Path:
    """As Real-ESRGAN's own files name the tensors of an ESRGAN of two blocks that enlarges four times."""
    names = {"model.0": "conv_first", "model.1.sub.2": "conv_body", "model.3": "conv_up1", "model.6": "conv_up2"}
    names |= {"model.8": "conv_hr", "model.10": "conv_last"}
    state = {}
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem in names:
            stem = names[stem]
        else:  # model.1.sub.0.RDB1.conv1.0
            parts = stem.split(".")
            stem = f"body.{parts[3]}.{parts[4].lower()}.{parts[5]}"
        state[f"{stem}.{kind}"] = tensor.contiguous()
    save_file(state, file)
    return file
