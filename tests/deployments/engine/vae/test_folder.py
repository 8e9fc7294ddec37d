"""Which VAEs a folder has, and what is refused of it before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from deployments.engine.errors import VaeRefused
from deployments.engine.vae.folder import VaeFolder
from tests.ldm_export import export_ldm
from tests.vaes import random_vae, write_vaes

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def own(sd15_pipeline: Any) -> AutoencoderKL:
    vae: AutoencoderKL = sd15_pipeline.vae
    return vae


def test_folders_single_files_and_what_their_latents_are_for(
    tmp_path: Path, tiny_sd15: Path, own: AutoencoderKL, sdxl_pipeline: Any
) -> None:
    vaes = {"soft": random_vae(own, 1), "file": random_vae(own, 2), "xl": random_vae(sdxl_pipeline.vae, 3)}
    vaes["odd"] = random_vae(own, 4, scaling_factor=0.5)
    write_vaes(tmp_path, vaes)
    export_ldm(tiny_sd15, tmp_path / "checkpoint.safetensors")
    fp16 = (tmp_path / "soft" / WEIGHTS).rename(tmp_path / "soft" / "diffusion_pytorch_model.fp16.safetensors")
    folder = VaeFolder(str(tmp_path))
    assert folder.names() == ("checkpoint", "file", "odd", "soft", "xl")
    every = ("sd15", "sd2", "sdxl", "sdxl-refiner")
    families = {name: source.families for name, source in folder.entries().items()}
    assert families == {
        "checkpoint": every,
        "file": every,
        "odd": every,
        "soft": ("sd15", "sd2"),
        "xl": ("sdxl", "sdxl-refiner"),
    }
    assert folder.find("soft").files == (fp16,)
    numbers = sum(of.numel() for of in own.state_dict().values())
    assert {source.numbers for source in folder.entries().values()} == {numbers}
    assert folder.find_for("xl", "sdxl-refiner") == folder.find("xl")
    with pytest.raises(VaeRefused, match="VAE 'xl' is for sdxl and sdxl-refiner models, not for sd15") as refused:
        folder.find_for("xl", "sd15")
    assert refused.value.field == "vae"
    with pytest.raises(VaeRefused, match="no VAE named 'none'"):
        folder.find("none")


def test_what_is_none(tmp_path: Path, own: AutoencoderKL) -> None:
    write_vaes(
        tmp_path, {"pickled": own, "short": own, "asymmetric": own, "wide": random_vae(own, 1, latent_channels=16)}
    )
    tensors = load_file(tmp_path / "pickled" / WEIGHTS)
    torch.save(tensors, tmp_path / "pickle.pt")
    torch.save(tensors, tmp_path / "pickled" / "diffusion_pytorch_model.bin")
    (tmp_path / "pickled" / WEIGHTS).unlink()
    short = tmp_path / "short" / WEIGHTS
    short.write_bytes(short.read_bytes()[:-8])
    edit(tmp_path / "asymmetric", _class_name="AsymmetricAutoencoderKL")
    save_file({"lora_unet.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    file_wide = load_file(tmp_path / "wide" / WEIGHTS)
    save_file(file_wide, tmp_path / "file-wide.safetensors")
    video = {f"{end}coder.conv_in.weight": torch.zeros(2, 4, 3, 3, 3) for end in ("en", "de")}
    save_file(video, tmp_path / "video.safetensors")
    contents = VaeFolder(str(tmp_path)).contents()
    assert contents.names == ()
    expected = {
        "asymmetric": "expected a AutoencoderKL, found 'AsymmetricAutoencoderKL'",
        "file-wide": "expected 4 latent channels, found 16",
        "lora": "expected the tensors of a VAE",
        "pickle": "a pickle can run code",
        "pickled": "expected diffusion_pytorch_model.safetensors",
        "short": "cut short or damaged",
        "video": "expected the tensors of a VAE",
        "wide": "expected 4 latent channels and 4 levels, found 16",
    }
    assert contents.skipped.keys() == expected.keys()
    assert [why for name, why in expected.items() if why not in contents.skipped[name]] == []
    assert [why for why in contents.skipped.values() if str(tmp_path) in why] == []


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
