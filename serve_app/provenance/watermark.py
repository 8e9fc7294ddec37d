"""The watermark of a service's images: an imperceptible mark in the pixels that names the service and the job.

Marking takes about ten milliseconds, reading up to a second: call both in a thread.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from PIL import Image

from deployments.engine.types import Pixels
from serve_app.config.provenance import DWT_DCT_SVD, WatermarkSettings
from serve_app.provenance import dwt_dct_svd
from serve_app.provenance.watermark_payload import (
    DATA_BITS,
    JOB_DIGITS,
    MOST_CHECK_BITS,
    PayloadCode,
    WatermarkPayload,
)

PLUGINS = "darkroom.watermarks"
"""The group of entry points that are plug-ins: each is called without arguments and returns a WatermarkModel."""

# Fewer would take too many pictures that a model finds a mark in for ours.
_LEAST_CHECK_BITS = 8


class BadWatermark(ValueError):
    """The plug-in that the settings name isn't there, or can't be used."""


class WatermarkModel(Protocol):
    """What a plug-in gives: the interface of TrustMark (`trustmark.TrustMark`, 0.9)."""

    def schemaCapacity(self) -> int:  # noqa: N802, TrustMark's name
        """Bits that a mark holds."""
        ...

    def encode(self, in_cover_image: Image.Image, string_secret: str, MODE: str = "text") -> Image.Image:  # noqa: N803
        """A copy of the picture that holds a string of 0 and 1, if MODE is "binary"."""
        ...

    def decode(self, in_stego_image: Image.Image, MODE: str = "text") -> tuple[str, bool, int]:  # noqa: N803
        """The string that a picture holds, whether it holds one, and the number of the code."""
        ...


class Watermark(Protocol):
    """A method of marking pictures."""

    def mark(self, pixels: Pixels, payload: WatermarkPayload) -> Pixels:
        """A marked copy of a picture, (height, width, 3), uint8, RGB."""
        ...

    def read(self, pixels: Pixels) -> WatermarkPayload | None:
        """What the mark of a picture says; None if it has none, or none that is clear enough."""
        ...


class DwtDctSvd:
    """The method `dwt-dct-svd`, which needs no weights."""

    def __init__(self) -> None:
        self._code = PayloadCode()

    def mark(self, pixels: Pixels, payload: WatermarkPayload) -> Pixels:
        """As Watermark. A picture without room for one whole word is left as it is."""
        if dwt_dct_svd.room(pixels) < self._code.length:
            return pixels
        return dwt_dct_svd.embed(pixels, self._code.word(payload))

    def read(self, pixels: Pixels) -> WatermarkPayload | None:
        """As Watermark."""
        if dwt_dct_svd.room(pixels) < self._code.length:
            return None
        return self._code.payload_of(dwt_dct_svd.read(pixels, self._code.length))


class ModelWatermark:
    """A model's method.

    Args:
        name: of the plug-in, for messages.
        model: the plug-in's.

    Raises:
        BadWatermark: its marks hold too few bits.
    """

    def __init__(self, name: str, model: WatermarkModel) -> None:
        capacity = model.schemaCapacity()
        if capacity < DATA_BITS + _LEAST_CHECK_BITS:
            least = DATA_BITS + _LEAST_CHECK_BITS
            raise BadWatermark(f"the watermark {name!r} holds {capacity} bits; at least {least} are needed")
        self._name = name
        self._model = model
        self._code = PayloadCode(min(capacity - DATA_BITS, MOST_CHECK_BITS))

    def mark(self, pixels: Pixels, payload: WatermarkPayload) -> Pixels:
        """As Watermark."""
        secret = "".join(map(str, self._code.word(payload)))
        marked = np.asarray(self._model.encode(Image.fromarray(pixels), secret, MODE="binary").convert("RGB"))
        if marked.shape != pixels.shape:
            raise BadWatermark(f"the watermark {self._name!r} made {marked.shape} of a picture of {pixels.shape}")
        return marked

    def read(self, pixels: Pixels) -> WatermarkPayload | None:
        """As Watermark."""
        secret, present, _ = self._model.decode(Image.fromarray(pixels), MODE="binary")
        word = np.array([*map(int, secret[: self._code.length])], np.uint8)
        return self._code.payload(word) if present and len(word) == self._code.length else None


def watermark_of(method: str) -> Watermark:
    """The method of a name: dwt-dct-svd, or a plug-in's. Raises BadWatermark."""
    if method == DWT_DCT_SVD:
        return DwtDctSvd()
    plugins = {plugin.name: plugin for plugin in entry_points(group=PLUGINS)}
    if method not in plugins:
        known = ", ".join([DWT_DCT_SVD, *sorted(plugins)])
        raise BadWatermark(f"unknown watermark {method!r}; known: {known} (plug-ins: entry points of {PLUGINS})")
    try:
        model: Callable[[], Any] = plugins[method].load()
    except (ImportError, AttributeError) as error:
        raise BadWatermark(f"the watermark {method!r} can't be imported: {error}") from error
    return ModelWatermark(method, model())


class ImageWatermark:
    """Marks the images of this service, and reads marks.

    Raises:
        BadWatermark: as `watermark_of`.
    """

    def __init__(self, settings: WatermarkSettings) -> None:
        self._service_id = settings.service_id
        self._method = watermark_of(settings.method)

    def mark(self, pixels: Pixels, job_id: str) -> Pixels:
        """A marked copy of an image of a job, (height, width, 3), uint8, RGB."""
        return self._method.mark(pixels, WatermarkPayload(self._service_id, job_id[-JOB_DIGITS:]))

    def read(self, pixels: Pixels) -> WatermarkPayload | None:
        """What the mark of a picture says, of this service or another one; None if none was found."""
        return self._method.read(pixels)
