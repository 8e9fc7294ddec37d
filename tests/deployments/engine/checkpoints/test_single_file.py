"""Single files load exactly as the folders that they were made of."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import FamilyName
from tests.deployments.engine.checkpoints.checkpoint_loading import (
    CONDITIONS,
    CPU,
    FAMILIES,
    assert_equal,
    folder_of,
    load,
)
from tests.deployments.engine.checkpoints.hub_cache import write_hub_cache
from tests.ldm_export import export_ldm


@pytest.mark.parametrize("family", FAMILIES)
def test_single_file_gives_what_its_folder_gives(
    family: FamilyName, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = folder_of(family, request)
    path = export_ldm(folder, tmp_path / "model.safetensors")
    weights, expected = load(family, path, config=str(folder)), load(family, folder)
    assert_equal(weights.unet, expected.unet)
    assert_equal(weights.vae, expected.vae)
    assert weights.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.scheduler_config["_class_name"] == expected.scheduler_config["_class_name"]
    assert (weights.force_zeros_for_empty_prompt, weights.time_ids) == CONDITIONS[family]
    file_spec = CheckpointSpec(family=family, source=str(path), config=str(folder))
    encoders = load_text_encoders(file_spec, CPU, torch.float32).encoders
    wanted = load_text_encoders(CheckpointSpec(family=family, source=str(folder)), CPU, torch.float32).encoders
    for encoder, other in zip(encoders, wanted, strict=True):
        assert_equal(encoder.model, other.model)


def test_single_files_with_the_same_text_encoder_share_it(tiny_sd15: Path, tmp_path: Path) -> None:
    one = export_ldm(tiny_sd15, tmp_path / "one.safetensors")
    tensors = load_file(one)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    loaded: dict[str, Any] = {}
    for path in (one, tmp_path / "other.safetensors"):
        spec = CheckpointSpec(family="sd15", source=str(path), config=str(tiny_sd15))
        load_text_encoders(spec, CPU, torch.float32, loaded)
    assert len(loaded) == 1


def test_single_file_of_another_family(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sdxl, tmp_path / "xl.safetensors")
    with pytest.raises(CheckpointError, match=r"xl.safetensors: of its \d+ tensors"):
        load("sd15", path, config=str(tiny_sd15))
    with pytest.raises(CheckpointError, match="family sd15"):
        load("sd15", path, config=str(tiny_sdxl))
    with pytest.raises(CheckpointError, match="label_emb"):
        load("sdxl", export_ldm(tiny_sd15, tmp_path / "15.safetensors"), config=str(tiny_sdxl))


def test_single_file_that_lacks_a_tensor(tiny_sd15: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sd15, tmp_path / "model.safetensors")
    tensors = load_file(path)
    del tensors["model.diffusion_model.middle_block.1.norm.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(mid_block.attentions.0.norm.bias"):
        load("sd15", path, config=str(tiny_sd15))


def test_single_file_without_its_published_config(tiny_sd15: Path, tmp_path: Path, empty_hub_cache: Path) -> None:
    path = export_ldm(tiny_sd15, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stable-diffusion-v1-5/stable-diffusion-v1-5"):
        load("sd15", path)
    write_hub_cache(tiny_sd15, empty_hub_cache, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert load("sd15", path).scheduler_config["_class_name"] == "PNDMScheduler"
