"""Finds what stands in pictures, by the detectors of a folder. Runs in the device's thread."""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from deployments.engine.checkpoints.files import hash_files
from deployments.engine.checkpoints.tensors import fill, read_tensors
from deployments.engine.detection.folder import DetectorSource
from deployments.engine.detection.network import STRIDE, GridNetwork
from deployments.engine.errors import NumericalFailure
from deployments.engine.types import MAX_DETECTIONS, Detection, Detections, Pixels

# networks that stay in memory; each has some megabytes
_RESIDENT = 8

# detections of which one is left: the share of their union that they have in common
_SAME = 0.5

# cells that are looked at, the surest ones
_MOST_CELLS = 512

_GREY = 114

Boxes = npt.NDArray[np.float32]


class ResidentDetectors:
    """The detectors in memory; the least recently used leaves first."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._networks: OrderedDict[DetectorSource, GridNetwork] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the detectors in memory, least recently used first."""
        return tuple(source.name for source in self._networks)

    def detect(self, source: DetectorSource, picture: Pixels, least: float) -> Detections:
        """What stands in a picture.

        Args:
            source: the detector.
            picture: (height, width, 3), uint8, of any size.
            least: the probability from which on something counts, 0..1.

        Returns:
            What was found, the surest first: at most MAX_DETECTIONS, of which no two are in one place.

        Raises:
            CheckpointError: the file's tensors aren't a whole network.
            NumericalFailure: a result isn't finite.
        """
        network = self._network(source)
        with torch.inference_mode():
            pixels = torch.from_numpy(fitted(picture, source.side)).to(self._device).permute(2, 0, 1)[None]
            logits, distances = network(pixels.to(self._dtype).div_(255))
            if not bool(torch.isfinite(logits).all() and torch.isfinite(distances).all()):
                raise NumericalFailure(f"detector {source.name!r} returned numbers that aren't finite")
            scores, edges = (told[0].float().cpu().numpy() for told in (logits.float().sigmoid(), distances))
        found = _found(source, scores, edges, picture.shape[:2], least)
        return Detections(found, hash_files((source.file,)))

    def _network(self, source: DetectorSource) -> GridNetwork:
        if source not in self._networks:
            for older in [other for other in self._networks if other.name == source.name]:
                del self._networks[older]  # its file was replaced
            with torch.device("meta"):
                empty = GridNetwork(source.widths, len(source.classes))
            tensors = read_tensors(source.file)
            self._networks[source] = fill(empty, tensors, source.file, self._device, self._dtype)
            while len(self._networks) > _RESIDENT:
                self._networks.popitem(last=False)
        self._networks.move_to_end(source)
        return self._networks[source]


def _scale(height: int, width: int, side: int) -> float:
    return side / max(height, width)


def fitted(picture: Pixels, side: int) -> Pixels:
    """A picture in the upper left corner of a grey square, scaled to its side."""
    height, width = picture.shape[:2]
    scale = _scale(height, width, side)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square = np.full((side, side, 3), _GREY, np.uint8)
    square[: size[1], : size[0]] = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    return square


def _found(
    source: DetectorSource, scores: Boxes, edges: Boxes, size: tuple[int, int], least: float
) -> tuple[Detection, ...]:
    """The detections of one picture.

    Args:
        source: the detector.
        scores: (classes, rows, columns), 0..1.
        edges: (4, rows, columns), in cells.
        size: height and width of the picture.
        least: score from which on a cell counts.
    """
    height, width = size
    best = scores.max(0)
    rows, columns = np.nonzero(best >= least)
    order = np.argsort(-best[rows, columns], kind="stable")[:_MOST_CELLS]
    rows, columns = rows[order], columns[order]
    left, top, right, bottom = edges[:, rows, columns]
    middles = columns + 0.5, rows + 0.5
    corners = [middles[0] - left, middles[1] - top, middles[0] + right, middles[1] + bottom]
    boxes = np.stack(corners, axis=1) * STRIDE / _scale(height, width, source.side)
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    detections: list[Detection] = []
    for index in _apart(boxes):
        cell = rows[index], columns[index]
        begin_x, begin_y, end_x, end_y = (round(float(edge)) for edge in boxes[index])
        if end_x > begin_x and end_y > begin_y:
            label = source.classes[int(scores[:, cell[0], cell[1]].argmax())]
            score = round(float(best[cell]), 4)
            detections.append(Detection(label, score, begin_x, begin_y, end_x, end_y))
        if len(detections) == MAX_DETECTIONS:
            break
    return tuple(detections)


def _apart(boxes: Boxes) -> list[int]:
    """Indices of the boxes, in their order, that aren't in the place of an earlier one (non-maximum suppression)."""
    left = list(range(len(boxes)))
    kept: list[int] = []
    while left:
        first, *others = left
        kept.append(first)
        left = [other for other in others if overlap(boxes[first], boxes[other]) < _SAME]
    return kept


def overlap(one: Boxes, other: Boxes) -> float:
    """What two boxes (left, top, right, bottom) have in common, as a share of their union."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - common
    return common / union if union > 0 else 0.0
