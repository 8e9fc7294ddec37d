"""AUTOMATIC1111's "extras": images made larger, at once by Lanczos or Nearest, or by a model, which takes a job.

What runs such a job is the caller's (a1111.py).
"""

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from deployments.engine.request import Pixels
from serve_app.source_image import read_picture
from serve_app.upscaling import Size

# A1111's upscalers that need no model; where it names none, it scales with Lanczos
EXTRAS_UPSCALERS = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}

# (model, the image as it came, the result's size) -> the result
ByModel = Callable[[str, str, Size], Awaitable[Pixels]]

_BY_FACTOR, _TO_SIZE = 0, 1


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

    def check(self, models: tuple[str, ...]) -> None:
        """Raise InvalidRequest for what can't be done. models: those that there are."""
        for name in ("gfpgan_visibility", "codeformer_visibility"):
            if getattr(self, name):
                raise InvalidRequest(f"{name} isn't supported here: leave it out", name)
        for name in ("upscaler_1", "upscaler_2"):
            wanted, known = getattr(self, name), (*EXTRAS_UPSCALERS, *models)
            if wanted not in known:
                raise InvalidRequest(f"{name} is {ascii(wanted)[:64]}; known: {', '.join(known)}", name)

    async def _enlarged(self, image: str, max_pixels: int, by_model: ByModel) -> str:
        """The image as a PNG file in base64. Raises InvalidRequest, and what `by_model` raises."""
        picture = await asyncio.to_thread(lambda: Image.fromarray(read_picture("image", image, max_pixels).pixels))
        size = self._size(picture, max_pixels)

        async def by(upscaler: str) -> Image.Image:
            larger = size.width > picture.width or size.height > picture.height
            if upscaler in EXTRAS_UPSCALERS or not larger:
                resampling = EXTRAS_UPSCALERS.get(upscaler, Image.Resampling.LANCZOS)
                return await asyncio.to_thread(picture.resize, size, resampling)
            return Image.fromarray(await by_model(upscaler, image, size))

        larger = await by(self.upscaler_1)
        if self.extras_upscaler_2_visibility:
            second = await by(self.upscaler_2)
            larger = await asyncio.to_thread(Image.blend, larger, second, self.extras_upscaler_2_visibility)
        return await asyncio.to_thread(self._file, larger)

    def _size(self, picture: Image.Image, max_pixels: int) -> Size:
        """Of the whole result, before anything is cut off."""
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

    def _file(self, larger: Image.Image) -> str:
        if self.resize_mode == _TO_SIZE and self.upscaling_crop:
            width, height = self.upscaling_resize_w, self.upscaling_resize_h
            left, top = (larger.width - width) // 2, (larger.height - height) // 2
            larger = larger.crop((left, top, left + width, top + height))
        file = io.BytesIO()
        larger.save(file, "PNG", compress_level=1)
        return base64.b64encode(file.getvalue()).decode()


class A1111ExtraImage(_Extras):
    """The body of POST /sdapi/v1/extra-single-image."""

    image: str = Field(description="base64, as it is or as a data URL.")

    async def enlarged(self, max_pixels: int, by_model: ByModel) -> str:
        """A PNG file in base64. Raises InvalidRequest, and what `by_model` raises."""
        return await self._enlarged(self.image, max_pixels, by_model)


class A1111NamedImage(BaseModel):
    """One of several images."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    data: str = Field(description="base64, as it is or as a data URL.")
    name: str = Field(default="", description="Ignored: the answer has the images in their order.")


class A1111ExtraImages(_Extras):
    """The body of POST /sdapi/v1/extra-batch-images."""

    images: tuple[A1111NamedImage, ...] = Field(alias="imageList", min_length=1, max_length=100)

    async def enlarged(self, max_pixels: int, by_model: ByModel) -> list[str]:
        """PNG files in base64, each of at most so many pixels, made one after the other.

        Raises InvalidRequest, for the first that can't be made larger, and what `by_model` raises.
        """
        made = []
        for number, image in enumerate(self.images):
            try:
                made.append(await self._enlarged(image.data, max_pixels, by_model))
            except InvalidRequest as error:
                raise InvalidRequest(f"image {number + 1}: {error.message}", f"imageList.{number}") from None
        return made


def read_file(data: bytes) -> Pixels:
    """The pixels of an image file that the service has made."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image)
