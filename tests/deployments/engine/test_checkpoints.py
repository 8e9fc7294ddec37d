"""Checkpoints load from every form exactly as saved, or not at all."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoint_files import read_header, resolve_source
from deployments.engine.checkpoint_spec import CheckpointSpec, Family
from deployments.engine.checkpoints import DenoiserWeights, load_denoiser, load_text_encoders
from deployments.engine.errors import CheckpointError
from tests.ldm_export import export_ldm, vae_to_ldm

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
FAMILIES: list[Family] = ["sd15", "sdxl", "sdxl-refiner"]
PIPELINES: dict[Family, Any] = {
    "sd15": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sdxl-refiner": StableDiffusionXLImg2ImgPipeline,
}
EXPECTED_OPTIONS = {"sd15": (False, False), "sdxl": (True, False), "sdxl-refiner": (False, True)}


def _load(family: Family, source: Path | str, dtype: torch.dtype = torch.float32, **rest: Any) -> DenoiserWeights:
    return load_denoiser(CheckpointSpec(family=family, source=str(source), **rest), CPU, dtype)


def _folder(family: Family, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"tiny_{family.replace('-', '_')}")
    return folder


def _assert_equal(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    found, wanted = model.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.fixture
def copy(tiny_sd15: Path, tmp_path: Path) -> Path:
    """A tiny SD1.5 to damage."""
    return shutil.copytree(tiny_sd15, tmp_path / "copy")


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _hub_cache(folder: Path, cache: Path, name: str) -> None:
    """Lay a folder out as Hugging Face's cache does: blobs, a snapshot of links to them, a ref."""
    repository = cache / f"models--{name.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = repository / "snapshots" / revision / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


# --- folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_gives_what_diffusers_gives(family: Family, request: pytest.FixtureRequest) -> None:
    folder = _folder(family, request)
    weights = _load(family, folder)
    pipeline = PIPELINES[family].from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    _assert_equal(weights.unet, pipeline.unet)
    _assert_equal(weights.vae, pipeline.vae)
    for key, value in pipeline.unet.config.items():
        if not key.startswith("_"):
            assert weights.unet.config[key] == value
    assert weights.vae.config.scaling_factor == pipeline.vae.config.scaling_factor
    assert weights.scheduler_config == json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (weights.force_zeros_for_empty_prompt, weights.requires_aesthetics_score) == EXPECTED_OPTIONS[family]
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
    assert _load("sd15", tiny_sd15, torch.float16).vae.config["force_upcast"] is False
    assert _load("sdxl", tiny_sdxl, torch.float16).vae.config["force_upcast"] is True


def test_weights_do_not_stay_mapped_to_their_file(copy: Path) -> None:
    weights = _load("sd15", copy)
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
    weights = _load("sd15", copy, variant="fp16")  # the VAE has no such variant and comes in its plain form
    assert torch.equal(weights.unet.conv_in.weight, halved["conv_in.weight"].float())
    with pytest.raises(CheckpointError, match=r"unet: expected .*found only .*fp16.safetensors \(a variant"):
        _load("sd15", copy)
    with pytest.raises(CheckpointError, match="variant 'fp16'"):
        _load("sd15", tiny_sd15, variant="fp16")


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
    weights, whole = _load("sd15", copy), _load("sd15", tiny_sd15)
    _assert_equal(weights.unet, whole.unet)
    assert weights.hash != whole.hash
    spec = CheckpointSpec(family="sd15", source=str(copy))
    whole_spec = CheckpointSpec(family="sd15", source=str(tiny_sd15))
    _assert_equal(
        load_text_encoders(spec, CPU, torch.float32).encoders[0].model,
        load_text_encoders(whole_spec, CPU, torch.float32).encoders[0].model,
    )
    (copy / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors: missing"):
        _load("sd15", copy)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(CheckpointError, match="beside it"):
        _load("sd15", copy)


def test_another_vae(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    other = _load("sdxl", tiny_sdxl).vae
    alone = tmp_path / "vae.safetensors"
    save_file(
        {
            k: v.contiguous()
            for k, v in vae_to_ldm(load_file(tiny_sdxl / "vae/diffusion_pytorch_model.safetensors")).items()
        },
        alone,
    )
    for source in (tiny_sdxl, tiny_sdxl / "vae", alone):
        _assert_equal(_load("sd15", tiny_sd15, vae=str(source)).vae, other)


def test_a_vae_of_old_diffusers(copy: Path, tiny_sd15: Path) -> None:
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new_part, old_part in old.items():
            name = name.replace(new_part, old_part)
        tensors[name] = tensor
    save_file(tensors, path)
    _assert_equal(_load("sd15", copy).vae, _load("sd15", tiny_sd15).vae)


def test_text_encoders_of_older_transformers(copy: Path, tiny_sd15: Path) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    tensors = {"text_model." + name: tensor for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path)
    spec, whole = (CheckpointSpec(family="sd15", source=str(folder)) for folder in (copy, tiny_sd15))
    _assert_equal(
        load_text_encoders(spec, CPU, torch.float32).encoders[0].model,
        load_text_encoders(whole, CPU, torch.float32).encoders[0].model,
    )


# --- single files, packages, the hub --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_single_file_gives_what_its_folder_gives(
    family: Family, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = _folder(family, request)
    path = export_ldm(folder, tmp_path / "model.safetensors")
    weights, expected = _load(family, path, config=str(folder)), _load(family, folder)
    _assert_equal(weights.unet, expected.unet)
    _assert_equal(weights.vae, expected.vae)
    assert weights.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.scheduler_config["_class_name"] == expected.scheduler_config["_class_name"]
    assert (weights.force_zeros_for_empty_prompt, weights.requires_aesthetics_score) == EXPECTED_OPTIONS[family]
    file_spec = CheckpointSpec(family=family, source=str(path), config=str(folder))
    encoders = load_text_encoders(file_spec, CPU, torch.float32).encoders
    wanted = load_text_encoders(CheckpointSpec(family=family, source=str(folder)), CPU, torch.float32).encoders
    for encoder, other in zip(encoders, wanted, strict=True):
        _assert_equal(encoder.model, other.model)


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
        _load("sd15", path, config=str(tiny_sd15))
    with pytest.raises(CheckpointError, match="family sd15"):
        _load("sd15", path, config=str(tiny_sdxl))
    with pytest.raises(CheckpointError, match="label_emb"):
        _load("sdxl", export_ldm(tiny_sd15, tmp_path / "15.safetensors"), config=str(tiny_sdxl))


def test_single_file_that_lacks_a_tensor(tiny_sd15: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sd15, tmp_path / "model.safetensors")
    tensors = load_file(path)
    del tensors["model.diffusion_model.middle_block.1.norm.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(mid_block.attentions.0.norm.bias"):
        _load("sd15", path, config=str(tiny_sd15))


def test_single_file_without_its_published_config(tiny_sd15: Path, tmp_path: Path, empty_hub_cache: Path) -> None:
    path = export_ldm(tiny_sd15, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stable-diffusion-v1-5/stable-diffusion-v1-5"):
        _load("sd15", path)
    _hub_cache(tiny_sd15, empty_hub_cache, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert _load("sd15", path).scheduler_config["_class_name"] == "PNDMScheduler"


def test_package(tiny_sd15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_models").mkdir()
    (tmp_path / "some_models" / "__init__.py").write_text("raise RuntimeError('loading weights imports nothing')")
    shutil.copytree(tiny_sd15, tmp_path / "some_models" / "fine-tune")
    monkeypatch.syspath_prepend(tmp_path)
    assert _load("sd15", "package:some_models/fine-tune").hash == _load("sd15", tiny_sd15).hash
    for source in (
        "package:some_models/other",
        "package:no_such_package/fine-tune",
        "package:some_models/../secrets",
        "package:some_models",
        "package:/etc/passwd",
    ):
        with pytest.raises(CheckpointError, match="package"):
            _load("sd15", source)


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_hub_cache(tiny_sd15: Path, empty_hub_cache: Path) -> None:
    _hub_cache(tiny_sd15, empty_hub_cache, "someone/tiny-sd15")
    weights = _load("sd15", "someone/tiny-sd15")
    _assert_equal(weights.unet, _load("sd15", tiny_sd15).unet)
    assert weights.hash == _load("sd15", tiny_sd15).hash
    spec = CheckpointSpec(family="sd15", source="someone/tiny-sd15")
    assert len(load_text_encoders(spec, CPU, torch.float32).encoders) == 1
    assert _load("sd15", tiny_sd15, vae="someone/tiny-sd15").vae.config.latent_channels == 4


def test_hub_cache_with_a_variant_of_the_unet_alone(copy: Path, empty_hub_cache: Path) -> None:
    (copy / UNET).rename(copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    _hub_cache(copy, empty_hub_cache, "someone/half")
    assert _load("sd15", "someone/half", variant="fp16").family == "sd15"


def test_hub_repository_that_is_not_there(empty_hub_cache: Path) -> None:
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        _load("sd15", "nobody/nothing")
    with pytest.raises(CheckpointError, match="revision v2"):
        _load("sd15", "nobody/nothing", revision="v2")


def test_hub_snapshot_that_was_cut_short(copy: Path, empty_hub_cache: Path) -> None:
    (copy / UNET).unlink()
    _hub_cache(copy, empty_hub_cache, "someone/part")
    with pytest.raises(CheckpointError, match=r"unet: expected diffusion_pytorch_model.safetensors, found no weights"):
        _load("sd15", "someone/part")


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c", "name", "../owner/name", "https://x/y"]
)
def test_source_that_is_nowhere(source: str) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        resolve_source(source)


# --- what is refused ------------------------------------------------------------------------------------------


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
        _load("sd15", bomb)
    (copy / UNET).unlink()
    shutil.copyfile(bomb, copy / "unet" / f"diffusion_pytorch_model{suffix}")
    with pytest.raises(CheckpointError, match=f"only diffusion_pytorch_model{suffix}: pickles can run code"):
        _load("sd15", copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickle_with_the_name_of_safetensors(protocol: int, copy: Path, tmp_path: Path) -> None:
    (copy / UNET).write_bytes(pickle.dumps(_Bomb(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.safetensors: a pickle"):
        _load("sd15", copy)
    assert not (tmp_path / "ran").exists()


def test_torch_archive_with_the_name_of_safetensors(copy: Path) -> None:
    torch.save({"conv_in.weight": torch.ones(1)}, copy / UNET)
    with pytest.raises(CheckpointError, match="a pickle in spite of its name"):
        _load("sd15", copy)


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
        _load("sd15", copy)


def test_tensors_that_overlap(copy: Path) -> None:
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}
    raw = json.dumps(header).encode()
    (copy / UNET).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors: not a safetensors file"):
        _load("sd15", copy)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999, 1.001])
def test_cut_short_or_too_long(share: float, copy: Path) -> None:
    content = (copy / UNET).read_bytes()
    (copy / UNET).write_bytes((content + b"\0" * 4096)[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="cut short"):
        _load("sd15", copy)


def _change_unet(copy: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(copy / UNET)
    change(tensors)
    save_file(tensors, copy / UNET)


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
    _change_unet(copy, change)
    with pytest.raises(CheckpointError, match=message):
        _load("sd15", copy)


def test_text_encoder_that_lacks_a_tensor(copy: Path) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["final_layer_norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"text_encoder/model.safetensors: 1 tensors missing"):
        load_text_encoders(CheckpointSpec(family="sd15", source=str(copy)), CPU, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("actual", FAMILIES)
def test_family_has_to_match(family: Family, actual: Family, request: pytest.FixtureRequest) -> None:
    folder = _folder(actual, request)
    if family == actual:
        return
    with pytest.raises(CheckpointError, match=rf"model_index.json: expected _class_name \w+ for family {family}"):
        _load(family, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "in_channels 4 .* found 9"),
        ({"cross_attention_dim": 1024}, "cross_attention_dim 16 .* found 1024"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type None .* found 'text_time'"),
        ({"_class_name": "UNet2DModel"}, "expected a UNet2DConditionModel, found 'UNet2DModel'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"nested": [{"trust_remote_code": True}]}, "trust_remote_code"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config"),
    ],
)
def test_unet_config(changes: dict[str, object], message: str, copy: Path) -> None:
    _edit(copy / "unet" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=f"unet/config.json: .*{message}"):
        _load("sd15", copy)


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
    _edit(copy / file, **changes)
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
        _load("sd15", copy)


def _leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves(part, (*path, index))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_hash_follows_the_file(copy: Path) -> None:
    before = _load("sd15", copy).hash
    _change_unet(copy, lambda tensors: tensors["conv_in.bias"].add_(1))
    after = _load("sd15", copy).hash
    assert after != before
    assert after == hashlib.sha256((copy / UNET).read_bytes()).hexdigest()


def test_header(copy: Path) -> None:
    header = read_header(copy / UNET)
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


def test_an_early_sd15_schedule_is_put_right_as_the_pipeline_does(copy: Path) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    early = json.loads(path.read_text()) | {"steps_offset": 0, "clip_sample": True}
    path.write_text(json.dumps(early))
    found = _load("sd15", copy).scheduler_config
    with pytest.warns(FutureWarning, match="steps_offset"):
        pipeline = StableDiffusionPipeline.from_pretrained(
            copy, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
    for key in ("steps_offset", "clip_sample"):
        assert found[key] == pipeline.scheduler.config[key]
