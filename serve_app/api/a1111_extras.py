"""AUTOMATIC1111's "extras": images made larger, without any model."""

import base64
import io

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from serve_app.source_image import read_source

# A1111's upscalers that we have; where it names none, it scales with Lanczos
EXTRAS_UPSCALERS = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}

_BY_FACTOR, _TO_SIZE = 0, 1


class _Extras(BaseModel):
    """What both calls say of how. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    resize_mode: int = Field(default=_BY_FACTOR, ge=0, le=1, description="0: by a factor, 1: to a size.")
    upscaling_resize: float = Field(default=2.0, gt=0.0, le=8.0)
    upscaling_resize_w: int = Field(default=512, ge=1, le=16_384)
    upscaling_resize_h: int = Field(default=512, ge=1, le=16_384)
    upscaling_crop: bool = Field(default=True, description="Cut off what is beyond the size.")
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = Field(default=0.0, ge=0.0, le=1.0)
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0

    def _enlarged(self, image: str, max_pixels: int) -> str:
        """The image as a PNG file in base64. Takes a moment. Raises InvalidRequest."""
        for name in ("gfpgan_visibility", "codeformer_visibility"):
            if getattr(self, name):
                raise InvalidRequest(f"{name} isn't supported here: leave it out", name)
        first, second = (self._resampling(name) for name in ("upscaler_1", "upscaler_2"))
        picture = Image.fromarray(read_source(image, None, max_pixels).image.pixels)
        if self.resize_mode == _TO_SIZE:
            by, field = max(self.upscaling_resize_w / picture.width, self.upscaling_resize_h / picture.height), "_w"
        else:
            by, field = self.upscaling_resize, ""
        size = max(1, round(picture.width * by)), max(1, round(picture.height * by))
        if size[0] * size[1] > max_pixels:
            raise InvalidRequest(
                f"the result would have {size[0] * size[1]} pixels, at most {max_pixels}", f"upscaling_resize{field}"
            )
        larger = picture.resize(size, first)
        if self.extras_upscaler_2_visibility:
            larger = Image.blend(larger, picture.resize(size, second), self.extras_upscaler_2_visibility)
        if self.resize_mode == _TO_SIZE and self.upscaling_crop:
            left, top = (size[0] - self.upscaling_resize_w) // 2, (size[1] - self.upscaling_resize_h) // 2
            larger = larger.crop((left, top, left + self.upscaling_resize_w, top + self.upscaling_resize_h))
        file = io.BytesIO()
        larger.save(file, "PNG", compress_level=1)
        return base64.b64encode(file.getvalue()).decode()

    def _resampling(self, field: str) -> Image.Resampling:
        wanted = getattr(self, field)
        if wanted not in EXTRAS_UPSCALERS:
            known = ", ".join(EXTRAS_UPSCALERS)
            raise InvalidRequest(f"{field} is {ascii(wanted)[:64]}; known: {known}", field)
        return EXTRAS_UPSCALERS[wanted]


class A1111ExtraImage(_Extras):
    """The body of POST /sdapi/v1/extra-single-image."""

    image: str = Field(description="base64, as it is or as a data URL.")

    def enlarged(self, max_pixels: int) -> str:
        """A PNG file in base64. Takes a moment: call it in a thread. Raises InvalidRequest."""
        return self._enlarged(self.image, max_pixels)


class A1111NamedImage(BaseModel):
    """One of several images."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    data: str = Field(description="base64, as it is or as a data URL.")
    name: str = Field(default="", description="Ignored: the answer has the images in their order.")


class A1111ExtraImages(_Extras):
    """The body of POST /sdapi/v1/extra-batch-images."""

    images: tuple[A1111NamedImage, ...] = Field(alias="imageList", min_length=1, max_length=100)

    def enlarged(self, max_pixels: int) -> list[str]:
        """PNG files in base64, each of at most so many pixels. Takes its time: call it in a thread.

        Raises InvalidRequest, for the first that can't be made larger.
        """
        made = []
        for number, image in enumerate(self.images):
            try:
                made.append(self._enlarged(image.data, max_pixels))
            except InvalidRequest as error:
                raise InvalidRequest(f"image {number + 1}: {error.message}", f"imageList.{number}") from None
        return made
