"""AUTOMATIC1111's "extras": images made larger, at once by Lanczos or Nearest, or by a model, which takes a job.

What runs such a job is the caller's (routes.py).
"""

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Pixels
from deployments.priority_semaphore import PrioritySemaphore
from serve_app.api.a1111.names import upscaler_of
from serve_app.images.decode import decoded, picture_size, read_picture
from serve_app.images.encode import MANIFEST_KEY, xmp_packet
from serve_app.images.infotext import XMP_CHUNK, texts_of
from serve_app.planning.sizes import Size
from serve_app.schemas.digital_source_type import COMPOSITE, ENHANCED

# A1111's upscalers that need no model; where it names none, it scales with Lanczos
EXTRAS_UPSCALERS = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}

# (model, the image as it came, the result's size) -> the result
ByModel = Callable[[str, str, Size], Awaitable[Pixels]]

_BY_FACTOR, _TO_SIZE = 0, 1

# how many times an image's most pixels a batch's results may have together: its answer holds them all
_BATCH = 4


class _Sized(NamedTuple):
    """The size of the whole result before it is cropped, and whether it is larger than the image in a direction."""

    size: Size
    larger: bool


class _Extras(BaseModel):
    """What both calls say of how. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    resize_mode: int = Field(default=_BY_FACTOR, ge=0, le=1, description="0: by a factor, 1: to a size.")
    upscaling_resize: float = Field(default=2.0, gt=0.0, le=8.0)
    upscaling_resize_w: int = Field(default=512, ge=1, le=16_384)
    upscaling_resize_h: int = Field(default=512, ge=1, le=16_384)
    upscaling_crop: bool = Field(default=True, description="Cut off what is beyond the size.")
    upscaler_1: str = Field(default="None", description="None, Lanczos, Nearest, or a model of /sdapi/v1/upscalers.")
    upscaler_2: str = Field(default="None", description="Likewise, mixed into the first.")
    extras_upscaler_2_visibility: float = Field(default=0.0, ge=0.0, le=1.0)
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0

    def with_known(self, models: tuple[str, ...], *, strict: bool) -> tuple[Self, list[str]]:
        """The body with upscalers that are here, and what is left out, which `strict` refuses.

        Raises InvalidRequest, also for an upscaler that nobody knows.
        """
        update, warnings = dict[str, Any](), list[str]()
        for name in ("gfpgan_visibility", "codeformer_visibility"):
            if getattr(self, name):
                warnings.append(_left_out(name, f"{name} has no effect: there is no face restorer here", strict))
                update[name] = 0.0
        for name in ("upscaler_1", "upscaler_2"):
            wanted, known = getattr(self, name), (*EXTRAS_UPSCALERS, *models)
            if wanted in known:
                continue
            found = upscaler_of(wanted, models)
            update[name] = next((label for label in known if label.lower() == (found.name or "none").lower()), None)
            if update[name] is None:
                raise InvalidRequest(f"{name} is {ascii(wanted)[:64]}; known: {', '.join(known)}", name)
            if found.warning is not None:
                warnings.append(_left_out(name, found.warning, strict))
        return self.model_copy(update=update), warnings

    async def _enlarged(
        self, image: str, sized: _Sized, max_pixels: int, by_model: ByModel, pictures: PrioritySemaphore
    ) -> str:
        """The image as a PNG file in base64. Raises InvalidRequest, and what `by_model` raises."""
        wanted = [self.upscaler_1, *([self.upscaler_2] if self.extras_upscaler_2_visibility else [])]
        models = self.models if sized.larger else []
        made = {name: await by_model(name, image, sized.size) for name in models}
        async with pictures.acquire(0):
            return await asyncio.to_thread(self._file, image, max_pixels, wanted, made)

    async def _sized(self, image: str, max_pixels: int) -> _Sized:
        """Nothing is unpacked for it. Raises InvalidRequest."""
        given = Size(*await asyncio.to_thread(picture_size, "image", image, max_pixels))
        size = self._size(given, max_pixels)
        return _Sized(size, size.width > given.width or size.height > given.height)

    def _size(self, picture: Size, max_pixels: int) -> Size:
        if self.resize_mode == _TO_SIZE:
            by, field = max(self.upscaling_resize_w / picture.width, self.upscaling_resize_h / picture.height), "_w"
        else:
            by, field = self.upscaling_resize, ""
        size = Size(max(1, round(picture.width * by)), max(1, round(picture.height * by)))
        if size.width * size.height > max_pixels:
            raise InvalidRequest(
                f"the result would have {size.width * size.height} pixels, at most {max_pixels}",
                f"upscaling_resize{field}",
            )
        return size

    def _file(self, image: str, max_pixels: int, wanted: Sequence[str], made: Mapping[str, Pixels]) -> str:
        """The result as a PNG file in base64; `made`: the pictures of the wanted upscalers that are models."""
        results = {name: Image.fromarray(pixels) for name, pixels in made.items()}
        if any(name not in results for name in wanted):
            picture = Image.fromarray(read_picture("image", image, max_pixels).pixels)
            of_model = next(iter(results.values()), None)
            size = self._size(Size(*picture.size), max_pixels) if of_model is None else of_model.size
            for name in wanted:
                if name not in results:
                    results[name] = picture.resize(size, EXTRAS_UPSCALERS.get(name, Image.Resampling.LANCZOS))
        result, *others = [results[name] for name in wanted]
        for other in others:
            result = Image.blend(result, other, self.extras_upscaler_2_visibility)
        if self.resize_mode == _TO_SIZE and self.upscaling_crop:
            width, height = self.upscaling_resize_w, self.upscaling_resize_h
            left, top = (result.width - width) // 2, (result.height - height) // 2
            result = result.crop((left, top, left + width, top + height))
        file = io.BytesIO()
        result.save(file, "PNG", compress_level=1, pnginfo=self._texts(image))
        return base64.b64encode(file.getvalue()).decode()

    def _texts(self, image: str) -> PngInfo:
        """The texts of the picture's file, and what was done with it, as A1111 keeps them."""
        infotext, items = texts_of(decoded("image", image)) or ("", {})
        to_size = f"{self.upscaling_resize_w}x{self.upscaling_resize_h}"
        by = f"to: {to_size}" if self.resize_mode == _TO_SIZE else f"by: {self.upscaling_resize:g}"
        done = f"Postprocess upscale {by}, Postprocess upscaler: {self.upscaler_1}"
        if self.extras_upscaler_2_visibility:
            done += f", Postprocess upscaler 2: {self.upscaler_2}"
        texts = PngInfo()
        # a manifest is of the file that it is in
        kept = {key: text for key, text in items.items() if key != MANIFEST_KEY}
        for key, text in {"parameters": infotext, **kept, "postprocessing": done}.items():
            if text:
                texts.add_text(key, text)
        texts.add_itxt(XMP_CHUNK, xmp_packet(self.source_type))
        return texts

    @property
    def source_type(self) -> str:
        """IPTC's URI of how the results came to be."""
        return COMPOSITE if self.models else ENHANCED

    @property
    def models(self) -> list[str]:
        """The upscalers that are models."""
        mixed = [self.upscaler_2] if self.extras_upscaler_2_visibility else []
        return [name for name in dict.fromkeys([self.upscaler_1, *mixed]) if name not in EXTRAS_UPSCALERS]


class A1111ExtraImage(_Extras):
    """The body of POST /sdapi/v1/extra-single-image."""

    image: str = Field(description="base64, as it is or as a data URL.")

    async def enlarged(self, max_pixels: int, by_model: ByModel, pictures: PrioritySemaphore) -> str:
        """The enlarged picture as a PNG file in base64; `pictures` bounds those unpacked at the same time.

        Raises InvalidRequest, and what `by_model` raises.
        """
        sized = await self._sized(self.image, max_pixels)
        return await self._enlarged(self.image, sized, max_pixels, by_model, pictures)


class A1111NamedImage(BaseModel):
    """One of several images."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    data: str = Field(description="base64, as it is or as a data URL.")
    name: str = Field(default="", description="Ignored: the answer has the images in their order.")


class A1111ExtraImages(_Extras):
    """The body of POST /sdapi/v1/extra-batch-images."""

    images: tuple[A1111NamedImage, ...] = Field(alias="imageList", min_length=1, max_length=100)

    async def enlarged(self, max_pixels: int, by_model: ByModel, pictures: PrioritySemaphore) -> list[str]:
        """PNG files in base64, each of at most so many pixels, all of at most four times as many, made one by one.

        Raises InvalidRequest, for the first that can't be made larger, and what `by_model` raises.
        """
        left, sizes, made = _BATCH * max_pixels, [], []
        for number, image in enumerate(self.images):
            with _numbered(number):
                sizes.append(await self._sized(image.data, max_pixels))
                left -= sizes[-1].size.width * sizes[-1].size.height
                if left < 0:
                    raise InvalidRequest(f"the results would have more than {_BATCH * max_pixels} pixels in all", "")
        for number, (image, sized) in enumerate(zip(self.images, sizes, strict=True)):
            with _numbered(number):
                made.append(await self._enlarged(image.data, sized, max_pixels, by_model, pictures))
        return made


def _left_out(field: str, why: str, strict: bool) -> str:
    if strict:
        raise InvalidRequest(why, field)
    return why


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Which of several images is refused."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"image {number + 1}: {error.message}", f"imageList.{number}") from None
