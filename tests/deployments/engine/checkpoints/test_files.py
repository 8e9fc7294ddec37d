"""Where checkpoints come from: installed packages, the hub's cache, or nowhere; the headers of their files."""

import shutil
from pathlib import Path

import pytest
import torch

from deployments.engine.checkpoints.files import read_header, resolve_source
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import CheckpointError
from tests.deployments.engine.checkpoints.checkpoint_loading import (
    CPU,
    UNET,
    assert_equal,
    load,
)
from tests.deployments.engine.checkpoints.hub_cache import write_hub_cache


def test_package(tiny_sd15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_models").mkdir()
    (tmp_path / "some_models" / "__init__.py").write_text("raise RuntimeError('loading weights imports nothing')")
    shutil.copytree(tiny_sd15, tmp_path / "some_models" / "fine-tune")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("sd15", "package:some_models/fine-tune").hash == load("sd15", tiny_sd15).hash
    for source in (
        "package:some_models/other",
        "package:no_such_package/fine-tune",
        "package:some_models/../secrets",
        "package:some_models",
        "package:/etc/passwd",
    ):
        with pytest.raises(CheckpointError, match="package"):
            load("sd15", source)


def test_hub_cache(tiny_sd15: Path, empty_hub_cache: Path) -> None:
    write_hub_cache(tiny_sd15, empty_hub_cache, "someone/tiny-sd15")
    weights = load("sd15", "someone/tiny-sd15")
    assert_equal(weights.unet, load("sd15", tiny_sd15).unet)
    assert weights.hash == load("sd15", tiny_sd15).hash
    spec = CheckpointSpec(family="sd15", source="someone/tiny-sd15")
    assert len(load_text_encoders(spec, CPU, torch.float32).encoders) == 1
    assert load("sd15", tiny_sd15, vae="someone/tiny-sd15").vae.config.latent_channels == 4


def test_hub_cache_with_a_variant_of_the_unet_alone(copy: Path, empty_hub_cache: Path) -> None:
    (copy / UNET).rename(copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    write_hub_cache(copy, empty_hub_cache, "someone/half")
    assert load("sd15", "someone/half", variant="fp16").family.name == "sd15"


def test_hub_repository_that_is_not_there(empty_hub_cache: Path) -> None:
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        load("sd15", "nobody/nothing")
    with pytest.raises(CheckpointError, match="revision v2"):
        load("sd15", "nobody/nothing", revision="v2")


def test_hub_snapshot_that_was_cut_short(copy: Path, empty_hub_cache: Path) -> None:
    (copy / UNET).unlink()
    write_hub_cache(copy, empty_hub_cache, "someone/part")
    with pytest.raises(CheckpointError, match=r"unet: expected diffusion_pytorch_model.safetensors, found no weights"):
        load("sd15", "someone/part")


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c", "name", "../owner/name", "https://x/y"]
)
def test_source_that_is_nowhere(source: str) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        resolve_source(source)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_begins_like_a_pickle(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entry = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(length.to_bytes(8, "little") + entry.ljust(length) + bytes(4))
    assert read_header(path).tensors.keys() == {"a"}
