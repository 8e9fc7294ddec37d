"""Diffusers folders load exactly as saved, in every form that they come in."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.files import read_header
from deployments.engine.checkpoints.loader import load_denoiser, load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import FamilyName
from tests.deployments.engine.checkpoints.checkpoint_loading import (
    CONDITIONS,
    CPU,
    FAMILIES,
    UNET,
    assert_equal,
    change_unet,
    folder_of,
    load,
)
from tests.ldm_export import vae_to_ldm

PIPELINES: dict[FamilyName, Any] = {
    "sd15": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sdxl-refiner": StableDiffusionXLImg2ImgPipeline,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_gives_what_diffusers_gives(family: FamilyName, request: pytest.FixtureRequest) -> None:
    folder = folder_of(family, request)
    weights = load(family, folder)
    pipeline = PIPELINES[family].from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    assert_equal(weights.unet, pipeline.unet)
    assert_equal(weights.vae, pipeline.vae)
    for key, value in pipeline.unet.config.items():
        if not key.startswith("_"):
            assert weights.unet.config[key] == value
    assert weights.vae.config.scaling_factor == pipeline.vae.config.scaling_factor
    assert weights.scheduler_config == json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (weights.force_zeros_for_empty_prompt, weights.time_ids) == CONDITIONS[family]
    assert weights.hash == hashlib.sha256((folder / UNET).read_bytes()).hexdigest()
    for model in (weights.unet, weights.vae):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_type_is_the_one_asked_for(tiny_sd15: Path) -> None:
    spec = CheckpointSpec(family="sd15", source=str(tiny_sd15))
    weights = load_denoiser(spec, CPU, torch.float16)
    assert weights.unet.dtype == weights.vae.dtype == torch.float16
    assert load_text_encoders(spec, CPU, torch.bfloat16).encoders[0].model.dtype == torch.bfloat16


def test_only_sdxl_asks_for_a_decode_in_float32(tiny_sd15: Path, tiny_sdxl: Path) -> None:
    """As in diffusers: force_upcast is true wherever a configuration is silent, and only SDXL's pipelines read it."""
    assert load("sd15", tiny_sd15, torch.float16).vae.config["force_upcast"] is False
    assert load("sdxl", tiny_sdxl, torch.float16).vae.config["force_upcast"] is True


def test_weights_do_not_stay_mapped_to_their_file(copy: Path) -> None:
    weights = load("sd15", copy)
    before = weights.unet.conv_in.weight.clone()
    path = copy / UNET
    with path.open("r+b") as file:
        file.seek(-(path.stat().st_size // 2), 2)
        file.write(bytes(path.stat().st_size // 2))
    assert torch.equal(weights.unet.conv_in.weight, before)
    assert all(parameter.abs().sum() > 0 for parameter in weights.unet.conv_out.parameters())


def test_variant(copy: Path, tiny_sd15: Path) -> None:
    unet = copy / UNET
    halved = {name: tensor.half() for name, tensor in load_file(unet).items()}
    save_file(halved, copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    unet.unlink()
    weights = load("sd15", copy, variant="fp16")  # the VAE has no such variant and comes in its plain form
    assert torch.equal(weights.unet.conv_in.weight, halved["conv_in.weight"].float())
    with pytest.raises(CheckpointError, match=r"unet: expected .*found only .*fp16.safetensors \(a variant"):
        load("sd15", copy)
    with pytest.raises(CheckpointError, match="variant 'fp16'"):
        load("sd15", tiny_sd15, variant="fp16")


def _shard(folder: Path, stem: str) -> Path:
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards(copy: Path, tiny_sd15: Path) -> None:
    index = _shard(copy / "unet", "diffusion_pytorch_model")
    _shard(copy / "text_encoder", "model")
    weights, whole = load("sd15", copy), load("sd15", tiny_sd15)
    assert_equal(weights.unet, whole.unet)
    assert weights.hash != whole.hash
    spec = CheckpointSpec(family="sd15", source=str(copy))
    whole_spec = CheckpointSpec(family="sd15", source=str(tiny_sd15))
    assert_equal(
        load_text_encoders(spec, CPU, torch.float32).encoders[0].model,
        load_text_encoders(whole_spec, CPU, torch.float32).encoders[0].model,
    )
    (copy / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors: missing"):
        load("sd15", copy)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(CheckpointError, match="beside it"):
        load("sd15", copy)


def test_another_vae(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    other = load("sdxl", tiny_sdxl).vae
    alone = tmp_path / "vae.safetensors"
    save_file(
        {
            k: v.contiguous()
            for k, v in vae_to_ldm(load_file(tiny_sdxl / "vae/diffusion_pytorch_model.safetensors")).items()
        },
        alone,
    )
    for source in (tiny_sdxl, tiny_sdxl / "vae", alone):
        assert_equal(load("sd15", tiny_sd15, vae=str(source)).vae, other)


def test_a_vae_of_old_diffusers(copy: Path, tiny_sd15: Path) -> None:
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new_part, old_part in old.items():
            name = name.replace(new_part, old_part)
        tensors[name] = tensor
    save_file(tensors, path)
    assert_equal(load("sd15", copy).vae, load("sd15", tiny_sd15).vae)


def test_text_encoders_of_older_transformers(copy: Path, tiny_sd15: Path) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    tensors = {"text_model." + name: tensor for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path)
    spec, whole = (CheckpointSpec(family="sd15", source=str(folder)) for folder in (copy, tiny_sd15))
    assert_equal(
        load_text_encoders(spec, CPU, torch.float32).encoders[0].model,
        load_text_encoders(whole, CPU, torch.float32).encoders[0].model,
    )


def test_an_early_sd15_schedule_is_put_right_as_the_pipeline_does(copy: Path) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    early = json.loads(path.read_text()) | {"steps_offset": 0, "clip_sample": True}
    path.write_text(json.dumps(early))
    found = load("sd15", copy).scheduler_config
    with pytest.warns(FutureWarning, match="steps_offset"):
        pipeline = StableDiffusionPipeline.from_pretrained(
            copy, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
    for key in ("steps_offset", "clip_sample"):
        assert found[key] == pipeline.scheduler.config[key]


def test_hash_follows_the_file(copy: Path) -> None:
    before = load("sd15", copy).hash
    change_unet(copy, lambda tensors: tensors["conv_in.bias"].add_(1))
    after = load("sd15", copy).hash
    assert after != before
    assert after == hashlib.sha256((copy / UNET).read_bytes()).hexdigest()


def test_header(copy: Path) -> None:
    header = read_header(copy / UNET).tensors
    tensors = load_file(copy / UNET)
    assert {name: entry.shape for name, entry in header.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


@pytest.mark.parametrize(("model", "folder"), [(UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")])
def test_diffusers_alone_would_go_on_with_random_weights(model: Any, folder: str, copy: Path) -> None:
    """Why every tensor is accounted for here; if this fails one day, the library has become strict."""
    path = copy / folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(sorted(tensors))))
    save_file(tensors, path)
    model.from_pretrained(copy / folder, dtype=torch.float32, use_safetensors=True)
