"""Enlarges pictures with models of ESRGAN's family, which stay on the device within a budget.

spandrel has the architectures; safetensors only. The caller cuts pictures into tiles and joins them (tiles.py). Runs in
the thread that owns the device.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deployments.engine.checkpoints.tensors import read_tensors
from deployments.engine.errors import CheckpointError, NumericalFailure, OutOfDeviceMemory
from deployments.engine.types import Pixels
from deployments.engine.upscaling.folder import UpscalerSource, unwrapped
from deployments.engine.upscaling.spandrel_import import esrgan_family

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor


@dataclass(frozen=True, slots=True)
class _Resident:
    model: "ImageModelDescriptor[Any]"
    size: int  # bytes


class ResidentUpscalers:
    """The upscalers on the device; the least recently used leaves first."""

    def __init__(self, resident_mib: int, device: torch.device, dtype: torch.dtype) -> None:
        """Raises CheckpointError if spandrel isn't installed."""
        self._family = esrgan_family()
        self._budget = resident_mib << 20
        self._device = device
        self._dtype = dtype
        self._residents: OrderedDict[UpscalerSource, _Resident] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models on the device, least recently used first."""
        return tuple(source.name for source in self._residents)

    def enlarge(self, source: UpscalerSource, pictures: Sequence[Pixels]) -> list[Pixels]:
        """Enlarge pictures of one shape, in one batch.

        Args:
            source: the model.
            pictures: (height, width, 3), uint8 each.

        Returns:
            (height * scale, width * scale, 3), uint8 each.

        Raises:
            CheckpointError: the file's tensors aren't a whole model.
            OutOfDeviceMemory: the batch doesn't fit the device.
            NumericalFailure: a result isn't finite.
        """
        try:
            return self._enlarged(source, pictures)
        except torch.OutOfMemoryError:
            height, width = pictures[0].shape[:2]
        # outside of the except block, whose traceback holds the memory that a smaller batch would need
        raise OutOfDeviceMemory(
            f"the device has no memory for {len(pictures)} tiles of {width}x{height} through {source.name!r}"
        )

    def _enlarged(self, source: UpscalerSource, pictures: Sequence[Pixels]) -> list[Pixels]:
        model = self._model(source)
        with torch.inference_mode():
            shown = torch.from_numpy(np.stack(pictures)).to(self._device).permute(0, 3, 1, 2)
            made = model(shown.to(self._dtype).div_(255))
            if not bool(torch.isfinite(made).all()):
                raise NumericalFailure(f"upscaler {source.name!r} returned pixels that aren't finite")
            pixels = made.float().mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [np.ascontiguousarray(picture) for picture in pixels]

    def _model(self, source: UpscalerSource) -> "ImageModelDescriptor[Any]":
        known = self._residents.get(source)
        if known is None:
            for older in [other for other in self._residents if other.name == source.name]:
                del self._residents[older]  # its file was replaced
            known = self._residents[source] = self._load(source)
            total = sum(one.size for one in self._residents.values())
            while total > self._budget and len(self._residents) > 1:
                total -= self._residents.popitem(last=False)[1].size
        self._residents.move_to_end(source)
        return known.model

    def _load(self, source: UpscalerSource) -> _Resident:
        tensors = unwrapped(read_tensors(source.file))
        try:
            model = self._family[source.architecture].architecture.load(tensors)
        # whatever its code runs into where a tensor is missing, left over or of another shape
        except (RuntimeError, KeyError, ValueError, AssertionError, IndexError, TypeError) as error:
            raise CheckpointError(f"{source.file}: not a complete {source.architecture} model: {error}") from error
        if model.scale != source.scale:
            raise CheckpointError(
                f"{source.file}: enlarges {model.scale} times, but its tensors' names say {source.scale}"
            )
        model.to(self._device, self._dtype).eval()
        size = sum(weight.nbytes for weight in model.model.parameters())
        return _Resident(model, size)
