"""Checkpoints that take turns on a device: in place, and from the host's memory."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.denoiser_weights import (
    DenoiserTensors,
    PlaceFor,
    can_refill,
    placed,
    refilled,
)
from deployments.engine.checkpoints.loader import load_denoiser, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.device import Device
from deployments.engine.errors import CheckpointError
from deployments.engine.residency import host_cache
from deployments.engine.residency.host_cache import HostCache
from deployments.engine.residency.weight_loader import WeightLoader
from deployments.engine.row_threads import RowThreads
from tests.deployments.engine.checkpoints.checkpoint_loading import CPU, UNET, assert_equal, change_unet, edit


@pytest.fixture
def other(tiny_sd15: Path, tmp_path: Path) -> Path:
    """A checkpoint of the same architecture that draws something else."""
    folder = shutil.copytree(tiny_sd15, tmp_path / "other")
    change_unet(folder, lambda tensors: [tensor.mul_(1.1) for tensor in tensors.values()])
    return folder


def spec_of(folder: Path) -> CheckpointSpec:
    return CheckpointSpec(family="sd15", source=str(folder))


class Reader:
    """Reads checkpoints and counts."""

    def __init__(self) -> None:
        self.readings = 0

    def __call__(self, spec: CheckpointSpec) -> DenoiserTensors:
        self.readings += 1
        return read_denoiser(spec)


def loader_of(reader: Reader, gib: float, **folders: Path) -> WeightLoader:
    settings = EngineSettings(device="cpu", channels_last=True, resident_checkpoints=1, host_memory_gib=gib)
    catalogue = {name: spec_of(folder) for name, folder in folders.items()}
    return WeightLoader(settings, catalogue, reader, Device(CPU, torch.float32, RowThreads(1)))


def test_a_refilled_model_is_the_other_checkpoint_in_the_same_memory(tiny_sd15: Path, other: Path) -> None:
    weights = load_denoiser(spec_of(tiny_sd15), CPU, torch.float32)
    wanted = load_denoiser(spec_of(other), CPU, torch.float32)
    addresses = [tensor.data_ptr() for tensor in weights.unet.state_dict().values()]
    read = read_denoiser(spec_of(other))
    assert can_refill(weights, read)
    again = refilled(weights, read)
    assert again.unet is weights.unet
    assert [tensor.data_ptr() for tensor in again.unet.state_dict().values()] == addresses
    assert again.hash == wanted.hash != weights.hash
    assert_equal(again.unet, wanted.unet)
    assert_equal(again.vae, wanted.vae)


def test_only_models_of_the_same_architecture_can_be_refilled(
    tiny_sd15: Path, tiny_sd15_inpainting: Path, tiny_sdxl: Path, other: Path
) -> None:
    weights = load_denoiser(spec_of(tiny_sd15), CPU, torch.float32)
    assert not can_refill(weights, read_denoiser(spec_of(tiny_sd15_inpainting)))
    assert not can_refill(weights, read_denoiser(CheckpointSpec(family="sdxl", source=str(tiny_sdxl))))
    edit(other / "unet/config.json", sample_size=96, _name_or_path="somebody/else")
    assert can_refill(weights, read_denoiser(spec_of(other)))
    edit(other / "vae/config.json", scaling_factor=0.5)
    assert not can_refill(weights, read_denoiser(spec_of(other)))


def test_nothing_is_copied_of_a_checkpoint_that_lacks_a_tensor(tiny_sd15: Path, other: Path) -> None:
    weights = load_denoiser(spec_of(tiny_sd15), CPU, torch.float32)
    change_unet(other, lambda tensors: tensors.pop("conv_out.bias"))
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(conv_out.bias"):
        refilled(weights, read_denoiser(spec_of(other)))
    assert_equal(weights.unet, load_denoiser(spec_of(tiny_sd15), CPU, torch.float32).unet)


def test_copies_are_kept_up_to_the_budget_as_the_device_has_them(tiny_sd15: Path, other: Path) -> None:
    reader = Reader()
    size = HostCache(reader, 0, torch.float16, torch.float16)._size(reader(spec_of(tiny_sd15)))
    copies = HostCache(reader, 2 * size, torch.float16, torch.bfloat16, channels_last=True)
    reader.readings = 0
    first = copies.get("a", spec_of(tiny_sd15))
    weight = first.unet.tensors["conv_in.weight"]
    assert weight.dtype == torch.float16
    assert weight.is_contiguous(memory_format=torch.channels_last)
    read = read_denoiser(spec_of(tiny_sd15))
    kinds = (read.unet, first.unet, torch.float16), (read.vae, first.vae, torch.bfloat16)
    for model, kept, dtype in kinds:
        assert all(torch.equal(kept.tensors[name], tensor.to(dtype)) for name, tensor in model.tensors.items())
    assert copies.get("a", spec_of(tiny_sd15)) is first
    copies.get("b", spec_of(other))
    copies.get("a", spec_of(tiny_sd15))
    copies.get("c", spec_of(other))
    assert copies.names == ("a", "c")  # b was used least recently
    assert reader.readings == 3
    small = HostCache(reader, size - 1, torch.float16, torch.float16)
    small.get("a", spec_of(tiny_sd15))
    assert small.names == ()


def test_copies_lie_in_pieces_that_pinning_takes_little_more_for(
    tiny_sd15: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_denoiser(spec_of(tiny_sd15))
    tensors = [*read.unet.tensors.values(), *read.vae.tensors.values()]
    piece = 1 << (max(of.nbytes for of in tensors) - 1).bit_length()  # the largest fits
    monkeypatch.setattr(host_cache, "_PIECE", piece)
    pageable, pinned = (
        HostCache(read_denoiser, 0, torch.float32, torch.float32, pinned=pinned)._size(read) for pinned in (False, True)
    )
    kept = HostCache(read_denoiser, pageable, torch.float32, torch.float32).get("a", spec_of(tiny_sd15))
    sizes: list[int] = []
    for model, of in ((kept.unet, read.unet), (kept.vae, read.vae)):
        assert all(torch.equal(model.tensors[name], tensor) for name, tensor in of.tensors.items())
        storages = {one.data_ptr(): one.nbytes() for one in map(torch.Tensor.untyped_storage, model.tensors.values())}
        sizes += storages.values()
    assert sum(sizes) == pageable
    assert max(sizes) <= piece
    assert len(sizes) > 4
    assert pinned == sum(map(host_cache.pinned_bytes, sizes)) > pageable
    assert [host_cache.pinned_bytes(size) for size in (0, 1, 2, 3, 4, 5, piece, piece + 1)] == [
        0, 1, 2, 4, 4, 8, piece, 2 * piece,
    ]  # fmt: skip


@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_swaps_to_and_fro_bring_back_the_same_weights(tiny_sd15: Path, other: Path, gib: float) -> None:
    reader = Reader()
    loader = loader_of(reader, gib, a=tiny_sd15, b=other)
    wanted = {
        "a": load_denoiser(spec_of(tiny_sd15), CPU, torch.float32),
        "b": load_denoiser(spec_of(other), CPU, torch.float32),
    }
    weights, _ = loader.place("a", loader.read("a"), None)
    for name in ("b", "a", "b", "b"):
        weights, previews = loader.place(name, loader.read(name), weights)
        assert_equal(weights.unet, wanted[name].unet)
        assert_equal(weights.vae, wanted[name].vae)
        assert previews.weight.shape == (3, 4)
    assert reader.readings == (2 if gib else 5)


def test_a_checkpoint_whose_files_were_replaced_is_a_new_one(tiny_sd15: Path, other: Path, copy: Path) -> None:
    reader = Reader()
    loader = loader_of(reader, 0.0, a=copy, b=tiny_sd15)
    weights, _ = loader.place("a", loader.read("a"), None)
    weights, _ = loader.place("b", loader.read("b"), weights)
    save_file(load_file(other / UNET), copy / UNET)
    weights, _ = loader.place("a", loader.read("a"), weights)
    assert_equal(weights.unet, load_denoiser(spec_of(other), CPU, torch.float32).unet)


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number_is_named_and_its_checkpoint_refused(
    tiny_sd15: Path, copy: Path, part: str, value: float
) -> None:
    path = copy / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.weight" if part == "unet" else "decoder.conv_in.weight"].view(-1)[5] = value
    save_file(tensors, path)
    loader = loader_of(Reader(), 0.0, a=copy, b=tiny_sd15)
    refused = rf"{part}/diffusion_pytorch_model.safetensors: tensor (decoder\.)?conv_in.weight holds .* in float32"
    with pytest.raises(CheckpointError, match=refused):
        loader.place("a", loader.read("a"), None)
    weights, _ = loader.place("b", loader.read("b"), None)
    with pytest.raises(CheckpointError, match=refused):
        loader.place("a", loader.read("a"), weights)


def test_a_weight_that_its_type_does_not_hold_is_named(copy: Path) -> None:
    change_unet(copy, lambda tensors: tensors["conv_out.bias"].fill_(1e5))
    load_denoiser(spec_of(copy), CPU, torch.float32)
    with pytest.raises(CheckpointError, match=r"tensor conv_out\.bias holds values that are infinite .* in float16"):
        load_denoiser(spec_of(copy), CPU, torch.float16)


def test_a_weight_that_is_no_number_is_named_where_it_is_quantised(copy: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    change_unet(copy, lambda tensors: tensors[name][0].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=rf"tensor {name} holds"):
        placed(
            read_denoiser(spec_of(copy)),
            PlaceFor(device=CPU, dtype=torch.float32, vae_dtype=torch.float32, quantized=True),
        )
