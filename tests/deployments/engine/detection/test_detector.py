"""What is found in pictures: by rules that can be told beforehand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deployments.engine.checkpoints.files import hash_files
from deployments.engine.detection.detector import ResidentDetectors, overlap
from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.detection.network import STRIDE
from deployments.engine.errors import CheckpointError, NumericalFailure
from deployments.engine.types import MAX_DETECTIONS, Pixels
from tests.detectors import SIDE, only_at, tiny_network, write_detector


@pytest.fixture
def detectors() -> ResidentDetectors:
    return ResidentDetectors(torch.device("cpu"), torch.float32)


def pictures(count: int) -> list[Pixels]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (48 + 40 * (i % 3), 64 + 8 * i, 3), np.uint8) for i in range(count)]


def test_what_is_surer_than_asked_for_counts(tmp_path: Path, detectors: ResidentDetectors) -> None:
    write_detector(tmp_path / "one.safetensors", tiny_network())
    source = DetectorFolder(str(tmp_path)).find("one")
    (picture,) = pictures(1)
    found = [detectors.detect(source, picture, least).detections for least in (0.0, 0.5, 1.0)]
    assert len(found[0]) > len(found[1]) >= len(found[2]) == 0
    assert all(one.score >= 0.5 for one in found[1])
    assert detectors.detect(source, picture, 0.0).detector_hash == hash_files((source.file,))


def test_boxes_lie_in_the_picture_and_apart_from_each_other(tmp_path: Path, detectors: ResidentDetectors) -> None:
    write_detector(tmp_path / "one.safetensors", tiny_network(2))
    source = DetectorFolder(str(tmp_path)).find("one")
    for picture in pictures(4):
        found = detectors.detect(source, picture, 0.0)
        assert 0 < len(found.detections) <= MAX_DETECTIONS
        height, width = picture.shape[:2]
        boxes = np.array([[one.left, one.top, one.right, one.bottom] for one in found.detections], np.float32)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert [one.score for one in found.detections] == sorted((one.score for one in found.detections), reverse=True)


def test_every_cell_has_its_place(tmp_path: Path, detectors: ResidentDetectors) -> None:
    """A network all of whose cells see a box of two cells: what is left lies side by side over the whole picture."""
    write_detector(tmp_path / "one.safetensors", only_at(tiny_network(), 2.0))
    source = DetectorFolder(str(tmp_path)).find("one")
    picture = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)  # seen at half its size
    found = detectors.detect(source, picture, 0.5)
    assert {one.label for one in found.detections} == {"square"}
    assert {one.score for one in found.detections} == {0.8808}
    first, cell = found.detections[0], 2 * STRIDE
    assert (first.left, first.top, first.right, first.bottom) == (0, 0, 1.5 * cell, 1.5 * cell)
    whole = [one for one in found.detections if one.left > 0 and one.right < 2 * SIDE]
    assert {one.right - one.left for one in whole} == {2 * cell}
    assert detectors.detect(source, picture, 0.9).detections == ()


def test_overlap() -> None:
    one, half = np.float32([0, 0, 4, 2]), np.float32([2, 0, 6, 2])
    assert (overlap(one, one), overlap(one, half), overlap(one, one + 9)) == (1.0, pytest.approx(1 / 3), 0.0)


def test_tensors_that_are_no_whole_network(tmp_path: Path, detectors: ResidentDetectors) -> None:
    write_detector(tmp_path / "one.safetensors", tiny_network(), widths="8,8,16,24")
    with pytest.raises(CheckpointError, match=r"one\.safetensors: .* of another shape"):
        detectors.detect(DetectorFolder(str(tmp_path)).find("one"), pictures(1)[0], 0.5)


def test_weights_that_are_not_numbers(tmp_path: Path, detectors: ResidentDetectors) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.head.weight[0] = float("nan")
    write_detector(tmp_path / "one.safetensors", network)
    with pytest.raises(CheckpointError, match=r"head\.weight holds values that are infinite or not a number"):
        detectors.detect(DetectorFolder(str(tmp_path)).find("one"), pictures(1)[0], 0.5)


def test_sums_beyond_all_numbers(tmp_path: Path, detectors: ResidentDetectors) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.head.weight[:] = 3e38
    write_detector(tmp_path / "one.safetensors", network)
    with pytest.raises(NumericalFailure, match="'one' returned numbers that aren't finite"):
        detectors.detect(DetectorFolder(str(tmp_path)).find("one"), pictures(1)[0], 0.5)


def test_a_replaced_file_is_loaded_anew(tmp_path: Path, detectors: ResidentDetectors) -> None:
    file = write_detector(tmp_path / "one.safetensors", only_at(tiny_network(), 2.0))
    folder = DetectorFolder(str(tmp_path))
    before = detectors.detect(folder.find("one"), pictures(1)[0], 0.5)
    write_detector(file, only_at(tiny_network(), -2.0))
    after = detectors.detect(folder.find("one"), pictures(1)[0], 0.5)
    assert (len(before.detections) > 0, len(after.detections)) == (True, 0)
    assert before.detector_hash != after.detector_hash
    assert detectors.names == ("one",)
