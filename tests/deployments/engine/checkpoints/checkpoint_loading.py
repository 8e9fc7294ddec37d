"""What the tests of checkpoint loading share: families, loading in one line, comparing, damaging."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.loader import load_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.families.family import FamilyName

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
FAMILIES: list[FamilyName] = ["sd15", "sdxl", "sdxl-refiner"]
# force_zeros_for_empty_prompt, numbers of the size condition
CONDITIONS = {"sd15": (False, 0), "sdxl": (True, 6), "sdxl-refiner": (False, 5)}


def load(family: FamilyName, source: Path | str, dtype: torch.dtype = torch.float32, **rest: Any) -> DenoiserWeights:
    return load_denoiser(CheckpointSpec(family=family, source=str(source), **rest), CPU, dtype)


def folder_of(family: FamilyName, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"tiny_{family.replace('-', '_')}")
    return folder


def assert_equal(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    found, wanted = model.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_unet(copy: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(copy / UNET)
    change(tensors)
    save_file(tensors, copy / UNET)
