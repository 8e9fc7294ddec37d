"""What a client asks for: a picture to be enlarged, strict in its fields and their types.

Knows no model and no limits: what a request means is said by upscaling.py.
"""

from pydantic import BaseModel, ConfigDict, Field

from serve_app.config.settings import OutputFormat, SafetyMode
from serve_app.schemas.generation_request import SEEDS, PriorityName

LANCZOS = "lanczos"


class UpscaleRequest(BaseModel):
    """One request for a larger picture."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    image: str = Field(
        description="A PNG, JPEG or WebP file as base64 or a data URL. Never fetched from a URL.",
    )
    upscaler: str = Field(default=LANCZOS, min_length=1, description='"lanczos", or a name of GET /models (upscalers).')
    scale: float | None = Field(
        default=None, gt=1.0, le=8.0, description="Times width and height; the model's own by itself, 2 of lanczos."
    )
    width: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, in place of scale.")
    height: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, in place of scale.")
    output_format: OutputFormat | None = Field(default=None, description="Of the image file.")
    priority: PriorityName = Field(default="normal", description="Who goes first where pictures wait.")
    timeout_s: float | None = Field(default=None, gt=0.0, description="Seconds after which the job fails.")
    safety: SafetyMode | None = Field(
        default=None, description="What happens to an unsafe picture; at least as strict as the service's own mode."
    )
    webhook_url: str | None = Field(
        default=None, min_length=1, description="Called when the job has ended; of a host that the service allows."
    )
