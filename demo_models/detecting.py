"""Measures the packaged detector on pictures that were never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from demo_models.detector import CLASSES, CONFIDENCE, LabelledPicture
from deployments.engine.detection.detector import ResidentDetectors, overlap
from deployments.engine.detection.folder import DetectorFolder

IOU = 0.5
"""Overlap with a shape's box from which on it counts as found."""


@dataclass(frozen=True, slots=True)
class DetectorScore:
    """Of so many shapes: those that were found, those of them by their names, and detections of no shape."""

    shapes: int
    found: int
    named: int
    false: int


def score_detector(folder: Path, name: str, pictures: list[LabelledPicture]) -> DetectorScore:
    source = DetectorFolder(str(folder)).find(name)
    detectors = ResidentDetectors(torch.device("cpu"), torch.float32)
    shapes = found = named = false = 0
    for labelled in pictures:
        result = detectors.detect(source, labelled.picture, CONFIDENCE)
        left = list(zip(labelled.boxes, labelled.labels, strict=True))
        shapes += len(left)
        for one in result.detections:
            box = np.array([one.left, one.top, one.right, one.bottom], dtype=np.float32)
            match = next((shape for shape in left if overlap(box, np.array(shape[0], dtype=np.float32)) >= IOU), None)
            if match is None:
                false += 1
                continue
            left.remove(match)
            found += 1
            named += CLASSES[match[1]] == one.label
    return DetectorScore(shapes, found, named, false)
