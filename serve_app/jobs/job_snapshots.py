"""How far the images of one job are: the newest state of each lane, and what a finished stage hands to the next.

In memory for whoever draws them, as bytes for the store and whoever adopts the job.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace

from deployments.engine.errors import StateRefused
from deployments.engine.lanes.snapshot import LaneSnapshot, pack, unpack
from deployments.engine.types import DenoiseResult, StageTimings
from serve_app.jobs.job import ImageStage
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

# a lane that is under way, or the end of one whose latents, or picture, the next stage takes
Part = LaneSnapshot | DenoiseResult

_RESULT = "result"
_ARRAYS = ("latents", "generator_state", "image")


class JobSnapshots:
    """The parts of one job, by image and stage."""

    def __init__(self) -> None:
        self._parts: dict[ImageStage, Part] = {}
        self._unsaved: dict[ImageStage, Part] = {}
        self._stored: dict[ImageStage, int] = {}  # bytes in the store

    def restore(self, stored: Mapping[ImageStage, bytes]) -> Mapping[ImageStage, Part]:
        """Take over what an owner before kept, and say what of it can be read; the rest is drawn again."""
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
        """It is so far now."""
        self._parts[image, stage] = self._unsaved[image, stage] = part

    def state(self, image: int, stage: int) -> LaneSnapshot | None:
        """Where the stage's lane is, if that is known."""
        part = self._parts.get((image, stage))
        return part if isinstance(part, LaneSnapshot) else None

    def result(self, image: int, stage: int) -> DenoiseResult | None:
        """The end of the stage, if it has ended."""
        part = self._parts.get((image, stage))
        return part if isinstance(part, DenoiseResult) else None

    def unsaved(self) -> Mapping[ImageStage, Part]:
        """What has changed since it was last `saved`."""
        return dict(self._unsaved)

    def pack(self, parts: Mapping[ImageStage, Part], max_bytes: int) -> dict[ImageStage, bytes]:
        """As much of `parts` as may be stored, all of the job being at most `max_bytes`. For any thread."""
        sizes = dict(self._stored)
        packed: dict[ImageStage, bytes] = {}
        for where, part in parts.items():
            data = part.to_bytes() if isinstance(part, LaneSnapshot) else _pack_result(part)
            if sum(sizes.values()) - sizes.get(where, 0) + len(data) <= max_bytes:
                packed[where] = data
                sizes[where] = len(data)
        return packed

    def saved(self, parts: Mapping[ImageStage, Part], packed: Mapping[ImageStage, bytes]) -> None:
        """`packed` is in the store, which is all of `parts` that there is room for."""
        self._stored |= {where: len(data) for where, data in packed.items()}
        self._unsaved = {where: part for where, part in self._unsaved.items() if parts.get(where) is not part}


def _pack_result(result: DenoiseResult) -> bytes:
    arrays = {name: array for name in _ARRAYS if (array := getattr(result, name)) is not None}
    bare = replace(result, latents=None, generator_state=None, image=None)
    return pack({_RESULT: asdict(bare)}, arrays)


def _read(data: bytes) -> Part:
    plain, arrays = unpack(data)
    if _RESULT not in plain:
        return LaneSnapshot.from_bytes(data)
    result = plain[_RESULT]
    return DenoiseResult(**{**result, **arrays, "timings": StageTimings(**result["timings"])})
