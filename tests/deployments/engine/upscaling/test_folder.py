"""Which upscalers a folder has, and what is refused of it before anything is loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments.engine.errors import CheckpointError, UpscalerRefused
from deployments.engine.upscaling.folder import UpscalerFolder
from tests.upscalers import tiny_compact, tiny_esrgan, write, write_later_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("upscalers")
    write(made / "first.safetensors", tiny_esrgan(1))
    write_later_names(made / "later.safetensors", tiny_esrgan(1))
    write(made / "twice.safetensors", tiny_esrgan(2, scale=2))
    write(made / "shuffled.safetensors", tiny_esrgan(2, scale=2, shuffle=2))
    write(made / "restoring.safetensors", tiny_esrgan(3, scale=1, shuffle=4))
    write(made / "compact.safetensors", tiny_compact(4))
    wrapped = {f"module.{name}": tensor for name, tensor in tiny_compact(4, scale=2).state_dict().items()}
    save_file(wrapped, made / "wrapped.safetensors")
    save_file({"conv_first.weight": torch.zeros(8, 3, 3, 3)}, made / "swinir.safetensors")
    grey = tiny_esrgan(1).state_dict() | {"model.0.weight": torch.zeros(8, 1, 3, 3)}
    save_file(grey, made / "grey.safetensors")
    save_file({"body.0.rdb1.conv1.weight": torch.zeros(1)}, made / "part.safetensors")
    (made / "old.pth").write_bytes(b"\x80\x02")
    (made / "disguised.safetensors").write_bytes(b"\x80\x02" + bytes(100))
    (made / "cut.safetensors").write_bytes((made / "first.safetensors").read_bytes()[:-1])
    (made / "notes.txt").write_text("")
    return made


def test_names(folder: Path) -> None:
    names = UpscalerFolder(str(folder)).names()
    assert {"first", "later", "compact"} <= set(names)
    assert not {"old", "notes"} & set(names)
    assert list(names) == sorted(names)
    assert UpscalerFolder(None).names() == ()
    with pytest.raises(CheckpointError, match="expected a folder of upscalers"):
        UpscalerFolder(str(folder / "nothing"))


@pytest.mark.parametrize(
    ("name", "architecture", "scale", "multiple"),
    [
        ("first", "ESRGAN", 4, 1),
        ("later", "ESRGAN", 4, 1),
        ("twice", "ESRGAN", 2, 1),
        ("shuffled", "ESRGAN", 2, 4),
        ("restoring", "ESRGAN", 1, 4),
        ("compact", "Compact", 4, 1),
        ("wrapped", "Compact", 2, 1),
    ],
)
def test_what_a_file_says_of_its_model(folder: Path, name: str, architecture: str, scale: int, multiple: int) -> None:
    found = UpscalerFolder(str(folder)).find(name)
    assert (found.architecture, found.scale, found.multiple) == (architecture, scale, multiple)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing", "no upscaler named 'nothing'"),
        ("../first", r"no upscaler named '\.\./first'"),
        ("..", "no upscaler named"),
        ("a" * 1000, "no upscaler named 'aaa"),
        ("old", r"is a \.pth file: a pickle can run code"),
        ("disguised", "a pickle in spite of its name"),
        ("cut", "cut short or damaged"),
        ("swinir", "expected a model of ESRGAN's family"),
        ("grey", "found 1 in and"),
        ("part", "its tensors aren't a complete model's"),
    ],
)
def test_what_is_refused(folder: Path, name: str, why: str) -> None:
    with pytest.raises(UpscalerRefused, match=why) as refused:
        UpscalerFolder(str(folder)).find(name)
    assert refused.value.field == "upscaler"
    assert str(folder) not in refused.value.message
    assert len(refused.value.message) < 400
