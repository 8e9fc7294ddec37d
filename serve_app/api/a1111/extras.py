"""AUTOMATIC1111's "extras": images made larger, at once by Lanczos or Nearest, or by a model, which takes a job.

What runs such a job is the caller's (routes.py).
"""

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Pixels
from deployments.priority_semaphore import PrioritySemaphore
from serve_app.images.decode import picture_size, read_picture
from serve_app.planning.sizes import Size

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

    def check(self, models: tuple[str, ...]) -> None:
        """Raise InvalidRequest for an option that isn't supported, or an upscaler that isn't in `models`."""
        for name in ("gfpgan_visibility", "codeformer_visibility"):
            if getattr(self, name):
                raise InvalidRequest(f"{name} isn't supported here: leave it out", name)
        for name in ("upscaler_1", "upscaler_2"):
            wanted, known = getattr(self, name), (*EXTRAS_UPSCALERS, *models)
            if wanted not in known:
                raise InvalidRequest(f"{name} is {ascii(wanted)[:64]}; known: {', '.join(known)}", name)

    async def _enlarged(
        self, image: str, sized: _Sized, max_pixels: int, by_model: ByModel, pictures: PrioritySemaphore
    ) -> str:
        """The image as a PNG file in base64. Raises InvalidRequest, and what `by_model` raises."""
        wanted = [self.upscaler_1, *([self.upscaler_2] if self.extras_upscaler_2_visibility else [])]
        models = [name for name in dict.fromkeys(wanted) if sized.larger and name not in EXTRAS_UPSCALERS]
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
        result.save(file, "PNG", compress_level=1)
        return base64.b64encode(file.getvalue()).decode()


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


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Which of several images is refused."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"image {number + 1}: {error.message}", f"imageList.{number}") from None
