"""Snapshots of the images of one job: the newest of each lane, and the results that a finished stage hands over.

In memory for the attempt that draws them, as bytes for the store and for the next owner.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace

from deployments.engine.errors import StateRefused
from deployments.engine.lanes.snapshot import LaneSnapshot, pack, unpack
from deployments.engine.types import DenoiseResult, Detection, Detections, StageTimings
from serve_app.jobs.job import ImageStage
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

# a running lane; the result of an ended one, whose latents or picture the next stage takes; or what a detail has found
Part = LaneSnapshot | DenoiseResult | Detections

_RESULT, _DETECTIONS = "result", "detections"
_ARRAYS = ("latents", "generator_state", "image")


class JobSnapshots:
    """The parts of one job, by image and stage."""

    def __init__(self) -> None:
        self._parts: dict[ImageStage, Part] = {}
        self._unsaved: dict[ImageStage, Part] = {}
        self._stored: dict[ImageStage, int] = {}  # bytes in the store

    def restore(self, stored: Mapping[ImageStage, bytes]) -> Mapping[ImageStage, Part]:
        """Take over what an earlier owner stored; returns what of it can be read. The rest is drawn again."""
        for where, data in stored.items():
            self._stored[where] = len(data)
            try:
                self._parts[where] = _read(data)
            except (ValueError, KeyError, TypeError, StateRefused) as error:
                log.warning(
                    "what was kept of an image can't be read", image=where[0], stage=where[1], cause=repr(error)
                )
        return dict(self._parts)

    def put(self, image: int, stage: int, part: Part) -> None:
        """Keep the newest part of an image in a stage."""
        self._parts[image, stage] = self._unsaved[image, stage] = part

    def state(self, image: int, stage: int) -> LaneSnapshot | None:
        """The snapshot of the stage's lane, if there is one."""
        part = self._parts.get((image, stage))
        return part if isinstance(part, LaneSnapshot) else None

    def result(self, image: int, stage: int) -> DenoiseResult | None:
        """The result of the stage, if it has ended."""
        part = self._parts.get((image, stage))
        return part if isinstance(part, DenoiseResult) else None

    def detections(self, image: int, key: int) -> Detections | None:
        """What a detail has found in an image, which is kept beside the plan's stages."""
        part = self._parts.get((image, key))
        return part if isinstance(part, Detections) else None

    def unsaved(self) -> Mapping[ImageStage, Part]:
        """The parts that have changed since they were last `saved`."""
        return dict(self._unsaved)

    def pack(self, parts: Mapping[ImageStage, Part], max_bytes: int) -> dict[ImageStage, bytes]:
        """The bytes of as many `parts` as fit, the whole job having at most `max_bytes`. For any thread."""
        sizes = dict(self._stored)
        packed: dict[ImageStage, bytes] = {}
        for where, part in parts.items():
            data = _packed(part)
            if sum(sizes.values()) - sizes.get(where, 0) + len(data) <= max_bytes:
                packed[where] = data
                sizes[where] = len(data)
        return packed

    def saved(self, parts: Mapping[ImageStage, Part], packed: Mapping[ImageStage, bytes]) -> None:
        """Note that `packed`, which is all of `parts` that fits, is in the store."""
        self._stored |= {where: len(data) for where, data in packed.items()}
        self._unsaved = {where: part for where, part in self._unsaved.items() if parts.get(where) is not part}


def _packed(part: Part) -> bytes:
    if isinstance(part, LaneSnapshot):
        return part.to_bytes()
    if isinstance(part, Detections):
        return pack({_DETECTIONS: asdict(part)}, {})
    return _pack_result(part)


def _pack_result(result: DenoiseResult) -> bytes:
    arrays = {name: array for name in _ARRAYS if (array := getattr(result, name)) is not None}
    bare = replace(result, latents=None, generator_state=None, image=None)
    return pack({_RESULT: asdict(bare)}, arrays)


def _read(data: bytes) -> Part:
    plain, arrays = unpack(data)
    if _DETECTIONS in plain:
        found = plain[_DETECTIONS]
        return Detections(tuple(Detection(**one) for one in found["detections"]), found["detector_hash"])
    if _RESULT not in plain:
        return LaneSnapshot.from_bytes(data)
    result = plain[_RESULT]
    return DenoiseResult(**{**result, **arrays, "timings": StageTimings(**result["timings"])})
