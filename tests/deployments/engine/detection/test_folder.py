"""Which detectors a folder has, and what is refused of it before anything is loaded."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.errors import CheckpointError, DetectorRefused
from tests.detectors import CLASSES, SIDE, WIDTHS, tiny_network, write_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("detectors")
    network = tiny_network()
    write_detector(made / "shapes.safetensors", network)
    save_file(network.state_dict(), made / "silent.safetensors")
    write_detector(made / "yolo.safetensors", network, architecture="yolov8")
    write_detector(made / "wide.safetensors", network, widths="8,8,16,4096")
    write_detector(made / "odd.safetensors", network, widths="8,8,16,17")
    write_detector(made / "shallow.safetensors", network, widths="8,8")
    write_detector(made / "nameless.safetensors", network, widths="a,b")
    write_detector(made / "uneven.safetensors", network, input_size="72")
    write_detector(made / "huge.safetensors", network, input_size="99999")
    write_detector(made / "twice.safetensors", network, classes=json.dumps(["a", "a"]))
    write_detector(made / "three.safetensors", network, classes=json.dumps(["a", "b", "c"]))
    write_detector(made / "deep.safetensors", network, classes="[" * 100_000)
    write_detector(made / "controls.safetensors", network, classes=json.dumps(["a\x07", "b"]))
    (made / "old.pt").write_bytes(pickle.dumps({"model": 1}))
    (made / "disguised.safetensors").write_bytes(pickle.dumps({"model": torch.zeros(3)}))
    (made / "cut.safetensors").write_bytes((made / "shapes.safetensors").read_bytes()[:-1])
    return made


def test_what_a_file_says_of_itself(folder: Path) -> None:
    found = DetectorFolder(str(folder))
    assert found.names() == ("shapes",)
    source = found.find("shapes")
    assert (source.classes, source.side, source.widths) == (CLASSES, SIDE, WIDTHS)
    assert DetectorFolder(None).names() == ()
    with pytest.raises(CheckpointError, match="expected a folder of detectors"):
        DetectorFolder(str(folder / "nothing"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing", "no detector named 'nothing'"),
        ("../shapes", r"no detector named '\.\./shapes'"),
        ("silent", "expected metadata with architecture 'darkroom-grid', found ''"),
        ("yolo", "found 'yolov8'"),
        ("wide", r"found \(8, 8, 16, 4096\)"),
        ("odd", "multiples of 8"),
        ("shallow", "expected 3 to 7 widths"),
        ("nameless", "expected numbers as its metadata's widths, found 'a,b'"),
        ("uneven", "an input_size of 64..2048, a multiple of 16, found 72"),
        ("huge", "found 99999"),
        ("twice", "a JSON list of different names"),
        ("three", r"expected a head.bias of 3 classes and 4 edges, found \(6,\)"),
        ("deep", "a JSON list of different names"),
        ("controls", "a JSON list of different names"),
        ("old", r"is a \.pt file: a pickle can run code"),
        ("disguised", "a pickle in spite of its name"),
        ("cut", "cut short or damaged"),
    ],
)
def test_what_is_refused(folder: Path, name: str, why: str) -> None:
    with pytest.raises(DetectorRefused, match=why) as refused:
        DetectorFolder(str(folder)).find(name)
    assert refused.value.field == "details"
    assert str(folder) not in refused.value.message
    assert len(refused.value.message) < 400
