"""Checkpoints that take turns on a device: in place, from the host's memory, and never as something else."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.canary import canary_of
from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors, can_refill, refilled
from deployments.engine.checkpoints.loader import load_denoiser, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.device import Device
from deployments.engine.errors import CheckpointError
from deployments.engine.residency import host_cache
from deployments.engine.residency.host_cache import HostCopies
from deployments.engine.residency.loading import Loading
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
    """Reads checkpoints and counts; `spoil` changes what the next readings find, as failing memory would."""

    def __init__(self) -> None:
        self.readings = 0
        self.spoil = False

    def __call__(self, spec: CheckpointSpec) -> DenoiserTensors:
        self.readings += 1
        read = read_denoiser(spec)
        if self.spoil:
            tensors = read.unet.tensors
            tensors["conv_in.weight"] = tensors["conv_in.weight"] + 1  # type: ignore[index]
        return read


def loading_of(reader: Reader, gib: float, **folders: Path) -> Loading:
    settings = EngineSettings(device="cpu", channels_last=True, resident_checkpoints=1, host_memory_gib=gib)
    catalogue = {name: spec_of(folder) for name, folder in folders.items()}
    return Loading(settings, catalogue, reader, Device(CPU, torch.float32, RowThreads(1)))


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
    size = HostCopies(reader, 0, torch.float16, torch.float16)._size(reader(spec_of(tiny_sd15)))
    copies = HostCopies(reader, 2 * size, torch.float16, torch.bfloat16, channels_last=True)
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
    small = HostCopies(reader, size - 1, torch.float16, torch.float16)
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
        HostCopies(read_denoiser, 0, torch.float32, torch.float32, pinned=pinned)._size(read)
        for pinned in (False, True)
    )
    kept = HostCopies(read_denoiser, pageable, torch.float32, torch.float32).get("a", spec_of(tiny_sd15))
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
    loading = loading_of(reader, gib, a=tiny_sd15, b=other)
    wanted = {
        "a": load_denoiser(spec_of(tiny_sd15), CPU, torch.float32),
        "b": load_denoiser(spec_of(other), CPU, torch.float32),
    }
    weights, _ = loading.place("a", loading.read("a"), None)
    for name in ("b", "a", "b", "b"):
        weights, previews = loading.place(name, loading.read(name), weights)
        assert_equal(weights.unet, wanted[name].unet)
        assert_equal(weights.vae, wanted[name].vae)
        assert previews.weight.shape == (3, 4)
    assert reader.readings == (2 if gib else 5)


def test_a_copy_that_changed_in_memory_is_dropped_and_its_files_are_read_anew(
    tiny_sd15: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader()
    loading = loading_of(reader, 1.0, a=tiny_sd15, b=other)
    weights, _ = loading.place("a", loading.read("a"), None)
    weights, _ = loading.place("b", loading.read("b"), weights)
    loading.read("a").unet.tensors["mid_block.resnets.0.conv1.weight"].mul_(-1)
    with caplog.at_level(logging.ERROR):
        weights, _ = loading.place("a", loading.read("a"), weights)
    assert "checkpoint a: loaded again, it draws something else" in caplog.text
    assert_equal(weights.unet, load_denoiser(spec_of(tiny_sd15), CPU, torch.float32).unet)
    assert loading.quarantined == ()
    assert reader.readings == 3


def test_a_checkpoint_that_comes_back_as_something_else_is_quarantined(tiny_sd15: Path, other: Path) -> None:
    reader = Reader()
    loading = loading_of(reader, 0.0, a=tiny_sd15, b=other)
    weights, _ = loading.place("a", loading.read("a"), None)
    weights, _ = loading.place("b", loading.read("b"), weights)
    reader.spoil = True
    with pytest.raises(CheckpointError, match="checkpoint 'a' is quarantined"):
        loading.place("a", loading.read("a"), weights)
    assert loading.quarantined == ("a",)
    with pytest.raises(CheckpointError, match="'a' is quarantined"):
        loading.read("a")
    loading.check("b")


def test_a_checkpoint_whose_files_were_replaced_is_a_new_one(tiny_sd15: Path, other: Path, copy: Path) -> None:
    reader = Reader()
    loading = loading_of(reader, 0.0, a=copy, b=tiny_sd15)
    weights, _ = loading.place("a", loading.read("a"), None)
    weights, _ = loading.place("b", loading.read("b"), weights)
    save_file(load_file(other / UNET), copy / UNET)
    weights, _ = loading.place("a", loading.read("a"), weights)
    assert_equal(weights.unet, load_denoiser(spec_of(other), CPU, torch.float32).unet)


def test_a_checkpoint_of_no_numbers_is_refused(copy: Path) -> None:
    change_unet(copy, lambda tensors: tensors["conv_in.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="aren't numbers"):
        loading_of(Reader(), 0.0, a=copy).place("a", read_denoiser(spec_of(copy)), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd15", "sd15-inpainting", "sdxl", "sdxl-refiner"])
def test_a_canary_is_of_the_weights_and_of_nothing_else(
    family: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{family.replace('-', '_')}")
    spec = CheckpointSpec.model_validate({"family": family.removesuffix("-inpainting"), "source": str(folder)})
    weights = load_denoiser(spec, CPU, dtype)
    first = canary_of(weights)
    assert canary_of(load_denoiser(spec, CPU, dtype)) == first
    for part in (weights.unet.mid_block.resnets[0].conv1.weight, weights.vae.decoder.mid_block.resnets[0].conv1.weight):
        part.mul_(-1)
        assert canary_of(weights) != first
        part.mul_(-1)
    assert canary_of(weights) == first
