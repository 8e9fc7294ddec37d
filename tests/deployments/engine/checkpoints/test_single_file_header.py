"""What a single file says of itself: its family, and what it was trained to predict."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.single_file_header import read_single_file_header
from deployments.engine.checkpoints.spec import CheckpointSpec, SchedulerSettings
from deployments.engine.errors import CheckpointError
from deployments.engine.families.registry import FAMILIES
from tests.deployments.engine.checkpoints.checkpoint_loading import load
from tests.ldm_export import export_ldm, write_hollow


def test_a_file_of_no_published_shape_or_of_another_family(tiny_sd15: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sd15, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a UNet of family sd15, found one of no published shape.*config"):
        load("sd15", path)
    with pytest.raises(ValidationError, match=r"say `family` and `config`"):
        CheckpointSpec.model_validate({"source": str(path)})
    with pytest.raises(ValidationError, match="family"):
        CheckpointSpec.model_validate({"source": str(tmp_path / "elsewhere.safetensors")})
    xl = write_hollow(tmp_path / "xl.safetensors", "sdxl")
    with pytest.raises(CheckpointError, match="expected a UNet of family sd15, found one family sdxl's: correct"):
        load("sd15", xl)


MARKS: list[tuple[list[str], dict[str, str], dict[str, Any], dict[str, Any], list[str]]] = [
    ([], {}, {}, {"prediction_type": "epsilon"}, []),
    (["v_pred"], {}, {}, {"prediction_type": "v_prediction"}, []),
    (
        ["v_pred", "ztsnr"],
        {},
        {},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        [],
    ),
    ([], {"modelspec.prediction_type": "v"}, {}, {"prediction_type": "v_prediction"}, []),
    ([], {"modelspec.prediction_type": "epsilon"}, {}, {"prediction_type": "epsilon"}, []),
    (
        ["v_pred"],
        {},
        {"prediction_type": "epsilon"},
        {"prediction_type": "epsilon"},
        ["its tensor v_pred says v_prediction, scheduler.prediction_type says epsilon: the setting counts"],
    ),
    (
        [],
        {"modelspec.prediction_type": "epsilon"},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction"},
        ["its metadata modelspec.prediction_type says epsilon, scheduler.prediction_type says v_prediction"],
    ),
    (
        ["v_pred"],
        {"modelspec.prediction_type": "epsilon"},
        {},
        {"prediction_type": "v_prediction"},
        ["says epsilon, its tensor v_pred says v_prediction: the tensor counts"],
    ),
    (
        ["v_pred", "ztsnr"],
        {},
        {"timestep_spacing": "leading"},
        {"prediction_type": "v_prediction", "timestep_spacing": "leading", "rescale_betas_zero_snr": False},
        ["zero terminal SNR (its tensor ztsnr), and scheduler.timestep_spacing is leading: the setting counts"],
    ),
    (
        ["v_pred", "ztsnr"],
        {},
        {"rescale_betas_zero_snr": False},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False},
        ["scheduler.rescale_betas_zero_snr is False: the setting counts"],
    ),
    (["ztsnr"], {}, {}, {"prediction_type": "epsilon"}, ["needs v_prediction"]),
    (
        [],
        {"modelspec.prediction_type": "flow"},
        {},
        {"prediction_type": "epsilon"},
        ["expected epsilon or v"],
    ),
]


@pytest.mark.parametrize(("marks", "metadata", "settings", "expected", "doubts"), MARKS)
def test_what_a_file_says_of_its_training_is_believed(
    marks: list[str],
    metadata: dict[str, str],
    settings: dict[str, Any],
    expected: dict[str, Any],
    doubts: list[str],
    tiny_sdxl: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = export_ldm(tiny_sdxl, tmp_path / "model.safetensors")
    save_file(load_file(path) | {mark: torch.zeros(1) for mark in marks}, path, metadata)
    found = load("sdxl", path, config=str(tiny_sdxl), scheduler=settings).scheduler_config
    assert {name: found.get(name) for name in expected} == expected
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == len(doubts)
    for warning, doubt in zip(warnings, doubts, strict=True):
        assert doubt in warning
        assert str(path) in warning


@pytest.mark.parametrize(
    ("architecture", "prediction"),
    [("stable-diffusion-v2-512", "epsilon"), ("stable-diffusion-v2-768-v", "v_prediction"), ("", "v_prediction")],
)
def test_modelspec_tells_sd2_s_kinds_apart(architecture: str, prediction: str, tmp_path: Path) -> None:
    layers = {
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
    }
    tensors = {f"model.diffusion_model.{name}": torch.zeros(shape) for name, shape in layers.items()}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"modelspec.architecture": architecture})
    said, _ = SchedulerSettings().completed(read_single_file_header(path))
    assert said.over(dict(FAMILIES["sd2"].scheduler))["prediction_type"] == prediction


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_schedules_that_no_sampler_has(mark: str, tiny_sdxl: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sdxl, tmp_path / "model.safetensors")
    save_file(load_file(path) | {mark: torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=f"its tensor {mark} says that it was trained on EDM's"):
        load("sdxl", path, config=str(tiny_sdxl))
