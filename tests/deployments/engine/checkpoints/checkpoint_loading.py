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
from deployments.engine.checkpoints.spec import CheckpointSpec, Family

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
FAMILIES: list[Family] = ["sd15", "sdxl", "sdxl-refiner"]
EXPECTED_OPTIONS = {"sd15": (False, False), "sdxl": (True, False), "sdxl-refiner": (False, True)}


def load(family: Family, source: Path | str, dtype: torch.dtype = torch.float32, **rest: Any) -> DenoiserWeights:
    return load_denoiser(CheckpointSpec(family=family, source=str(source), **rest), CPU, dtype)


def folder_of(family: Family, request: pytest.FixtureRequest) -> Path:
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
