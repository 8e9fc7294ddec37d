"""VAEs with random weights as requests name them: diffusers folders and single files."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from tests.ldm_export import vae_to_ldm


def random_vae(like: Any, seed: int, **changes: Any) -> AutoencoderKL:
    """One of the configuration of `like`, with other weights."""
    torch.manual_seed(seed)
    vae: AutoencoderKL = AutoencoderKL.from_config({**like.config, **changes})
    return vae.eval().requires_grad_(False)


def write_vaes(folder: Path, vaes: dict[str, AutoencoderKL]) -> Path:
    """Write each as a folder; those whose name begins with "file" as a single file of the original code's layout."""
    for name, vae in vaes.items():
        if name.startswith("file"):
            tensors = {key: of.contiguous() for key, of in vae_to_ldm(dict(vae.state_dict())).items()}
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / f"{name}.safetensors")
        else:
            shutil.rmtree(folder / name, ignore_errors=True)
            vae.save_pretrained(folder / name)
    return folder
