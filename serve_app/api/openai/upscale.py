"""Lemonade's POST /v1/images/upscale, in OpenAI's form: what it asks of us."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.api.errors import fields_named
from serve_app.schemas.upscale_request import LANCZOS, UpscaleRequest
from serve_app.schemas.validation import validated


class OpenAIUpscaleRequest(BaseModel):
    """The body of POST /v1/images/upscale."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    image: str = Field(description="A PNG, JPEG or WebP file as base64 or a data URL. Never fetched from a URL.")
    model: str | None = Field(default=None, description='"lanczos", the default, or an upscaler of GET /models.')
    scale: float | None = Field(default=None, description="Times width and height; by itself the upscaler's own.")
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    user: str | None = None

    def upscaling(self) -> UpscaleRequest:
        """What it asks for, in native words. Raises InvalidRequest."""
        fields = {"image": self.image, "upscaler": self.model or LANCZOS}
        given = {"scale": self.scale, "output_format": self.output_format}
        with fields_named({"upscaler": "model"}):
            return validated(UpscaleRequest, fields | {name: one for name, one in given.items() if one is not None})
