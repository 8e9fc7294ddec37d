"""Single files load exactly as the folders that they were made of."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints import single_file
from deployments.engine.checkpoints.loader import describe_denoiser, load_denoiser, load_text_encoders
from deployments.engine.checkpoints.single_file_header import read_single_file_header
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.checkpoints.tensors import check_tensors
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES
from deployments.engine.families.sd15 import SD15
from tests.deployments.engine.checkpoints.checkpoint_loading import (
    CONDITIONS,
    CPU,
    assert_equal,
    folder_of,
    load,
)
from tests.ldm_export import export_ldm, write_hollow
from tests.tiny_checkpoints import PUBLISHED_LAYERS, write_tiny_sd15, write_tiny_sdxl, write_tiny_sdxl_refiner


@pytest.fixture(scope="module")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As those after it, with the number of layers that the names of published files go by."""
    return write_tiny_sd15(tmp_path_factory.mktemp("published") / "tiny-sd15", layers=PUBLISHED_LAYERS)


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("published") / "tiny-sdxl", layers=PUBLISHED_LAYERS)


@pytest.fixture(scope="module")
def tiny_sdxl_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl_refiner(tmp_path_factory.mktemp("published") / "tiny-sdxl-refiner", layers=PUBLISHED_LAYERS)


@pytest.mark.parametrize("family", CONDITIONS)
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


SIZES: dict[FamilyName, tuple[int, ...]] = {  # parameters of the UNet and of the text encoders, as published
    "sd15": (859_520_964, 123_060_480),
    "sd2": (865_910_724, 340_387_840),
    "sdxl": (2_567_463_684, 123_060_480, 694_659_840),
    "sdxl-refiner": (2_259_526_660, 694_659_840),
}


@pytest.mark.parametrize("family", SIZES)
def test_a_file_alone_is_described_by_what_comes_with_the_project(
    family: FamilyName, tmp_path: Path, empty_hub_cache: Path
) -> None:
    path = write_hollow(tmp_path / "model.safetensors", family)
    spec = CheckpointSpec.model_validate({"source": str(path)})
    assert spec.family == family
    architecture = describe_denoiser(spec)
    tensors = single_file.unet_tensors(path, architecture.unet)
    autoencoder = single_file.vae_tensors(path, architecture.vae)
    with init_empty_weights():
        check_tensors(UNet2DConditionModel.from_config(dict(architecture.unet)), tensors, path)
        check_tensors(AutoencoderKL.from_config(dict(architecture.vae)), autoencoder, path)
    assert _numbers(autoencoder) == 83_653_863
    encoders = [single_file.text_encoder_tensors(path, of) for of in FAMILIES[family].text_encoders]
    assert (_numbers(tensors), *map(_numbers, encoders)) == SIZES[family]


def _numbers(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize(("family", "prediction"), [("sd15", "epsilon"), ("sd2", "epsilon"), ("sdxl", "epsilon")])
def test_an_inpainting_file_alone(family: FamilyName, prediction: str, tmp_path: Path) -> None:
    path = write_hollow(tmp_path / "inpainting.safetensors", family, in_channels=9)
    spec = CheckpointSpec.model_validate({"source": str(path)})
    config = describe_denoiser(spec).unet
    assert config["in_channels"] == 9
    assert single_file.unet_tensors(path, config)["conv_in.weight"].shape == (320, 9, 3, 3)
    said, _ = spec.scheduler.completed(read_single_file_header(path))
    assert said.over(dict(FAMILIES[family].scheduler))["prediction_type"] == prediction


def test_a_whole_file_of_published_shape_loads(tmp_path: Path, empty_hub_cache: Path) -> None:
    path = write_hollow(tmp_path / "model.safetensors", "sd15")
    spec = CheckpointSpec.model_validate({"source": str(path)})
    weights = load_denoiser(spec, CPU, torch.bfloat16)
    assert weights.scheduler_config == SD15.scheduler
    (encoder,) = load_text_encoders(spec, CPU, torch.bfloat16).encoders
    # as CLIP's own tokenizer has it
    assert encoder.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (encoder.tokenizer.pad_token_id, encoder.tokenizer.model_max_length) == (49407, 77)


@pytest.mark.parametrize("second_form", [False, True])
def test_scaled_8_bit_floats(second_form: bool, tiny_sdxl: Path, tmp_path: Path) -> None:
    """ComfyUI's layout: linear weights of the UNet as numbers of 8 bits, each with a scale."""
    path = export_ldm(tiny_sdxl, tmp_path / "model.safetensors")
    tensors, wanted = load_file(path), load_file(path)
    for name, tensor in list(tensors.items()):
        if name.startswith("model.diffusion_model.") and name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            layer = name.removesuffix("weight")
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            wanted[name] = tensors[name].float() * scale
            if second_form:
                note = json.dumps({"format": "float8_e4m3fn"}).encode()
                tensors[f"{layer}comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
                tensors |= {f"{layer}weight_scale": scale, f"{layer}input_scale": torch.ones(1)}
            else:
                tensors |= {f"{layer}scale_weight": scale, f"{layer}scale_input": torch.ones(1)}
    if not second_form:
        tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_file(tensors, path)
    save_file(wanted, tmp_path / "wanted.safetensors")
    found = load("sdxl", path, config=str(tiny_sdxl)).unet.state_dict()
    expected = load("sdxl", tmp_path / "wanted.safetensors", config=str(tiny_sdxl)).unet.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-6)


def test_other_kinds_of_numbers_are_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sdxl, tmp_path / "model.safetensors")
    tensors = load_file(path)
    layer = "model.diffusion_model.input_blocks.4.1.proj_in"
    note = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file(tensors | {f"{layer}.comfy_quant": note}, path)
    with pytest.raises(CheckpointError, match=r"proj_in\.comfy_quant says format 'nvfp4'"):
        load("sdxl", path, config=str(tiny_sdxl))
    save_file(tensors | {f"{layer}.scale_weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"the scale of .*proj_in.weight has shape \(3,\)"):
        load("sdxl", path, config=str(tiny_sdxl))


@pytest.mark.parametrize(
    "part", ["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias", "ln_final.bias"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(part: str, value: float, tiny_sdxl: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sdxl, tmp_path / "model.safetensors")
    tensors = load_file(path)
    (name,) = (name for name in tensors if name.endswith(part))
    tensors[name][0] = value
    save_file(tensors, path)
    spec = CheckpointSpec(family="sdxl", source=str(path), config=str(tiny_sdxl))
    renamed = {"out.2.bias": "conv_out.bias", "ln_final.bias": "final_layer_norm.bias"}
    shown = next((new for old, new in renamed.items() if part.endswith(old)), "quant_conv.bias")
    read = load_text_encoders if "ln_final" in part else load_denoiser
    with pytest.raises(CheckpointError, match=rf"tensor \S*{shown} holds values that are infinite or not a number"):
        read(spec, CPU, torch.float32)
