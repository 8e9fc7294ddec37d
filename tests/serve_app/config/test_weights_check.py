"""What files say of themselves against the settings: problems and warnings, with the key that they are about."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from deployments.engine.samplers.registry import SAMPLERS
from serve_app.config.settings import Settings
from serve_app.config.weights_check import doubtful_files, wrong_files
from tests.ldm_export import write_hollow
from tests.serve_app.cli.command_line import config_with, darkroom, document


def settings_of(source: Path, **model: Any) -> Settings:
    return Settings.model_validate({"models": {"mine": {"source": str(source), **model}}, "default_model": "mine"})


def test_a_file_that_fits(tmp_path: Path) -> None:
    path = write_hollow(tmp_path / "mine.safetensors", "sdxl")
    settings = settings_of(path)
    assert settings.models["mine"].family == "sdxl"
    assert list(wrong_files(settings)) == []
    assert list(doubtful_files(settings)) == []
    assert list(wrong_files(settings_of(tmp_path / "elsewhere.safetensors", family="sd15"))) == []


def test_a_file_of_another_family_and_one_of_another_kind(tmp_path: Path) -> None:
    path = write_hollow(tmp_path / "mine.safetensors", "sdxl")
    [(keys, reason)] = wrong_files(settings_of(path, family="sd15"))
    assert keys == ("models", "mine", "source")
    assert "expected a UNet of family sd15, found one family sdxl's" in reason
    edm = write_hollow(tmp_path / "edm.safetensors", "sdxl", edm_mean=torch.zeros(4))
    [(keys, reason)] = wrong_files(settings_of(edm, family="sdxl"))
    assert "its tensor edm_mean" in reason


def test_what_a_file_was_trained_for(tmp_path: Path) -> None:
    path = write_hollow(tmp_path / "mine.safetensors", "sdxl", v_pred=torch.zeros(1), ztsnr=torch.zeros(1))
    assert list(doubtful_files(settings_of(path))) == []
    [(keys, reason)] = doubtful_files(settings_of(path, scheduler={"prediction_type": "epsilon"}))
    assert keys == ("models", "mine", "source")
    assert "v_pred says v_prediction, scheduler.prediction_type says epsilon: the setting counts" in reason
    unfit = next(name for name, sampler in SAMPLERS.items() if not sampler.zero_snr)
    [(keys, reason)] = wrong_files(settings_of(path, defaults={"sampler": unfit}))
    assert keys == ("models", "mine", "defaults", "sampler")
    assert f"{unfit} doesn't support zero terminal SNR" in reason


@pytest.mark.parametrize("section", ["loras", "controlnets", "vaes", "upscalers", "detectors", "embeddings"])
def test_skipped_files(section: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.pt").write_bytes(b"\x80\x02")
    save_file({"odd": np.zeros(3, np.int64)}, folder / "odd.safetensors")
    old, new = {
        "loras": ("folder: package:demo_models/demo-loras", f"folder: {folder}"),
        "controlnets": ("folder: package:demo_models/demo-controlnets", f"folder: {folder}"),
        "vaes": ("      vaes: {folder: null", f"      vaes: {{folder: {folder}"),
        "upscalers": ("      upscalers: {folder: null", f"      upscalers: {{folder: {folder}"),
        "detectors": ("      detectors: {folder: null", f"      detectors: {{folder: {folder}"),
        "embeddings": ("        text_encoder:\n", f"        text_encoder:\n          embeddings: {folder}\n"),
    }[section]
    path = config_with(tmp_path, (old, new))
    result = darkroom("config", "check", path)
    assert result.exit_code == 0
    assert result.stderr.count("warning: ") == 2
    assert "'old' is a .pt file: a pickle can run code when it is read" in result.stderr
    [one] = document(darkroom("config", "check", path, "--json"))["files"]
    assert (one["ok"], len(one["warnings"])) == (True, 2)
    line = int(one["warnings"][0].split(":")[1])
    assert str(folder) in path.read_text().splitlines()[line - 1]
