"""A client's request to enlarge a picture; planning/upscale.py completes it."""

from pydantic import Field

from serve_app.schemas.generation_request import SEEDS, JobOptions

LANCZOS = "lanczos"


class UpscaleRequest(JobOptions):
    """One request for a larger picture."""

    image: str = Field(description="A PNG, JPEG or WebP file as base64 or a data URL. Never fetched from a URL.")
    upscaler: str = Field(default=LANCZOS, min_length=1, description='"lanczos", or a name of GET /models (upscalers).')
    scale: float | None = Field(
        default=None, gt=1.0, le=8.0, description="Times width and height; the model's own by itself, 2 of lanczos."
    )
    width: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, in place of scale.")
    height: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, in place of scale.")
