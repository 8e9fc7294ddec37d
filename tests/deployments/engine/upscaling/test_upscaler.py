"""Models enlarge as spandrel's own call of them does, also in batches; what isn't a whole model is refused."""

import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.errors import CheckpointError, NumericalFailure, OutOfDeviceMemory
from deployments.engine.types import Pixels
from deployments.engine.upscaling.folder import UpscalerFolder
from deployments.engine.upscaling.upscaler import ResidentUpscalers
from tests.upscalers import tiny_compact, tiny_esrgan, write, write_later_names

CPU = torch.device("cpu")

MODELS = {
    "esrgan": tiny_esrgan(1),
    "shuffled": tiny_esrgan(2, scale=2, shuffle=2),
    "compact": tiny_compact(3, scale=2),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, model in MODELS.items():
        write(tmp_path / f"{name}.safetensors", model)
    return tmp_path


def picture(seed: int, height: int = 40, width: int = 56) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def enlarged_alone(model: torch.nn.Module, pixels: Pixels) -> Pixels:
    with torch.no_grad():
        made = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    return (made[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def resident(mib: int = 64, dtype: torch.dtype = torch.float32) -> ResidentUpscalers:
    return ResidentUpscalers(mib, CPU, dtype)


@pytest.mark.parametrize("name", MODELS)
def test_as_the_model_itself(folder: Path, name: str) -> None:
    source = UpscalerFolder(str(folder)).find(name)
    pictures = [picture(1), picture(2)]
    made = resident().enlarge(source, pictures)
    for one, pixels in zip(made, pictures, strict=True):
        assert one.shape == (40 * source.scale, 56 * source.scale, 3)
        assert np.abs(one.astype(int) - enlarged_alone(MODELS[name], pixels)).max() <= 1
        assert one.std() > 1


def test_tensors_names_make_no_difference(folder: Path) -> None:
    write_later_names(folder / "later.safetensors", MODELS["esrgan"])
    first, later = (UpscalerFolder(str(folder)).find(name) for name in ("esrgan", "later"))
    models = resident()
    assert (models.enlarge(first, [picture(1)])[0] == models.enlarge(later, [picture(1)])[0]).all()


def test_in_sixteen_bits(folder: Path) -> None:
    source = UpscalerFolder(str(folder)).find("esrgan")
    exact, rounded = (resident(dtype=kind).enlarge(source, [picture(1)])[0] for kind in (torch.float32, torch.bfloat16))
    assert np.abs(exact.astype(int) - rounded).max() <= 8


def test_the_models_that_were_used_last_stay(folder: Path) -> None:
    found = UpscalerFolder(str(folder))
    roomy, tight = resident(), resident(0)
    for name in ("esrgan", "compact", "esrgan"):
        for models in (roomy, tight):
            models.enlarge(found.find(name), [picture(1)])
    assert roomy.names == ("compact", "esrgan")
    assert tight.names == ("esrgan",)


def test_a_file_that_was_replaced_is_read_anew(folder: Path) -> None:
    models = resident()
    before = models.enlarge(UpscalerFolder(str(folder)).find("compact"), [picture(1)])[0]
    write(folder / "compact.safetensors", tiny_compact(9, scale=4))
    after = models.enlarge(UpscalerFolder(str(folder)).find("compact"), [picture(1)])[0]
    assert after.shape[0] == 2 * before.shape[0]
    assert models.names == ("compact",)


def test_what_is_no_whole_model_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "esrgan.safetensors")
    tensors.pop("model.1.sub.0.RDB2.conv3.0.bias")
    save_file(tensors, folder / "gap.safetensors")
    with pytest.raises(CheckpointError, match="not a complete ESRGAN model"):
        resident().enlarge(UpscalerFolder(str(folder)).find("gap"), [picture(1)])


def test_not_a_number_is_no_picture(folder: Path) -> None:
    tensors = load_file(folder / "compact.safetensors")
    tensors["body.0.bias"][:] = float("nan")
    save_file(tensors, folder / "poisoned.safetensors")
    with pytest.raises(NumericalFailure, match="aren't finite"):
        resident().enlarge(UpscalerFolder(str(folder)).find("poisoned"), [picture(1)])


def test_a_batch_without_memory_leaves_it_to_smaller_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = UpscalerFolder(str(folder)).find("compact")
    models = resident()
    pictures = [picture(1), picture(2)]
    held: list[weakref.ref[torch.Tensor]] = []

    def overfill(made: torch.Tensor) -> torch.Tensor:
        held.append(weakref.ref(made))
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as scarce:
        scarce.setattr(torch, "isfinite", overfill)
        with pytest.raises(OutOfDeviceMemory, match="no memory for 2 tiles of 56x40 through 'compact'") as raised:
            models.enlarge(source, pictures)
    assert held[0]() is None, "whoever keeps the error keeps no tensor"
    assert str(raised.value)
    assert len(models.enlarge(source, pictures[:1])) == 1


def test_nothing_is_left_of_what_stood_in_for_torchvision() -> None:
    assert "spandrel" in sys.modules
    stood_in = [name for name, module in sys.modules.items() if name.startswith("torchvision") and not module.__spec__]
    assert stood_in == []
