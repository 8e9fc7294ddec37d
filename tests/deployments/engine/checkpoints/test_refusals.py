"""Checkpoints that are unsafe, damaged or of the wrong kind are refused, by the name of the file."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.loader import load_denoiser, load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import FamilyName
from tests.deployments.engine.checkpoints.checkpoint_loading import (
    CPU,
    FAMILIES,
    UNET,
    change_unet,
    edit,
    folder_of,
    load,
)


class _Bomb:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
def test_pickles_are_refused_by_name(suffix: str, copy: Path, tmp_path: Path) -> None:
    bomb = tmp_path / f"model{suffix}"
    bomb.write_bytes(pickle.dumps(_Bomb(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=f"{suffix} files are pickles"):
        load("sd15", bomb)
    (copy / UNET).unlink()
    shutil.copyfile(bomb, copy / "unet" / f"diffusion_pytorch_model{suffix}")
    with pytest.raises(CheckpointError, match=f"only diffusion_pytorch_model{suffix}: pickles can run code"):
        load("sd15", copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickle_with_the_name_of_safetensors(protocol: int, copy: Path, tmp_path: Path) -> None:
    (copy / UNET).write_bytes(pickle.dumps(_Bomb(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.safetensors: a pickle"):
        load("sd15", copy)
    assert not (tmp_path / "ran").exists()


def test_torch_archive_with_the_name_of_safetensors(copy: Path) -> None:
    torch.save({"conv_in.weight": torch.ones(1)}, copy / UNET)
    with pytest.raises(CheckpointError, match="a pickle in spite of its name"):
        load("sd15", copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x10\x00", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "doesn't describe tensors"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "doesn't describe tensors"),
        (b"\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "doesn't describe tensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<html>404</html>", "not a safetensors file"),
    ],
)
def test_not_safetensors(content: bytes, message: str, copy: Path) -> None:
    (copy / UNET).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"unet/diffusion_pytorch_model.safetensors: .*{message}"):
        load("sd15", copy)


def test_tensors_that_overlap(copy: Path) -> None:
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}
    raw = json.dumps(header).encode()
    (copy / UNET).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors: not a safetensors file"):
        load("sd15", copy)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999, 1.001])
def test_cut_short_or_too_long(share: float, copy: Path) -> None:
    content = (copy / UNET).read_bytes()
    (copy / UNET).write_bytes((content + b"\0" * 4096)[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="cut short"):
        load("sd15", copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv_in.bias"), r"1 tensors missing \(conv_in.bias"),
        (lambda tensors: tensors.update(surplus=torch.ones(1)), r"no place for \(surplus"),
        (
            lambda tensors: tensors.update({"conv_in.bias": torch.ones(3)}),
            r"another shape \(conv_in.bias: expected \(8,\), found \(3,\)",
        ),
    ],
)
def test_every_tensor_has_to_be_accounted_for(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, copy: Path
) -> None:
    change_unet(copy, change)
    with pytest.raises(CheckpointError, match=message):
        load("sd15", copy)


def test_text_encoder_that_lacks_a_tensor(copy: Path) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["final_layer_norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"text_encoder/model.safetensors: 1 tensors missing"):
        load_text_encoders(CheckpointSpec(family="sd15", source=str(copy)), CPU, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("actual", FAMILIES)
def test_family_has_to_match(family: FamilyName, actual: FamilyName, request: pytest.FixtureRequest) -> None:
    folder = folder_of(actual, request)
    if family == actual:
        return
    with pytest.raises(CheckpointError, match=rf"model_index.json: expected _class_name \w+ for family {family}"):
        load(family, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 8}, "in_channels 4 .* found 8"),
        ({"cross_attention_dim": 1024}, "cross_attention_dim 16 .* found 1024"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type None .* found 'text_time'"),
        ({"_class_name": "UNet2DModel"}, "expected a UNet2DConditionModel, found 'UNet2DModel'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"nested": [{"trust_remote_code": True}]}, "trust_remote_code"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config"),
    ],
)
def test_unet_config(changes: dict[str, object], message: str, copy: Path) -> None:
    edit(copy / "unet" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=f"unet/config.json: .*{message}"):
        load("sd15", copy)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model_index.json", {"unet": ["evil", "UNet2DConditionModel"]}),
        ("model_index.json", {"unet": ["diffusers", "UNet3DConditionModel"]}),
        ("model_index.json", {"plugin": ["diffusers", "AutoencoderKL"]}),
        ("model_index.json", {"text_encoder": ["os", "system"]}),
        ("model_index.json", {"custom_pipeline": "someone/else"}),
        ("text_encoder/config.json", {"architectures": ["AutoModel"]}),
        ("text_encoder/config.json", {"_attn_implementation": "someone/kernel"}),
        ("text_encoder/config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        ("scheduler/scheduler_config.json", {"_class_name": "EvilScheduler"}),
        ("vae/config.json", {"_class_name": "AsymmetricAutoencoderKL"}),
        ("vae/config.json", {"latent_channels": 16}),
    ],
)
def test_config_with_what_is_not_known(file: str, changes: dict[str, object], copy: Path) -> None:
    edit(copy / file, **changes)
    spec = CheckpointSpec(family="sd15", source=str(copy))
    load = load_text_encoders if file.startswith(("text_encoder", "tokenizer")) else load_denoiser
    with pytest.raises(CheckpointError, match=file):
        load(spec, CPU, torch.float32)


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("content", [None, "{", "[]", "[" * 100_000])
def test_config_that_is_missing_or_broken(file: str, content: str | None, copy: Path) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_text(content)
    with pytest.raises(CheckpointError, match=file):
        load("sd15", copy)


def _leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves(part, (*path, index))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_a_config_says_it_loads_or_is_refused_by_name(copy: Path, data: st.DataObject) -> None:
    """One value of one configuration becomes something else; numbers stay small, since they are sizes of tensors."""
    file = data.draw(st.sampled_from(sorted(str(path.relative_to(copy)) for path in copy.rglob("*config.json"))))
    original = (copy / file).read_text()
    config = json.loads(original)
    *parents, last = data.draw(st.sampled_from([leaf for leaf in _leaves(config) if leaf]))
    scalars = st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False) | st.text(max_size=5)
    value = data.draw(
        scalars | st.lists(scalars, max_size=5) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
    )
    target = config
    for key in parents:
        target = target[key]
    target[last] = value
    (copy / file).write_text(json.dumps(config))
    spec = CheckpointSpec(family="sd15", source=str(copy))
    try:
        load_denoiser(spec, CPU, torch.float32)
        load_text_encoders(spec, CPU, torch.float32)
    except CheckpointError as error:
        assert str(copy) in error.message  # noqa: PT017 - it may also load
    finally:
        (copy / file).write_text(original)


def test_tokenizer_that_is_missing(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_text_encoders(CheckpointSpec(family="sd15", source=str(copy)), CPU, torch.float32)
