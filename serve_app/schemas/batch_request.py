"""A batch by a matrix: one request, and axes along which it changes, as the web UI's X/Y/Z plot has them."""

from typing import Any, Self

from pydantic import Field, model_validator

from serve_app.schemas.generation_request import RequestPart

_MOST_AXES, _MOST_VALUES = 6, 1_000


class BatchAxis(RequestPart):
    """What differs along one axis: a field, a LoRA's weight, or a text of the prompts."""

    field: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description='A field of the request, such as "seed", "scheduler" or "hires.strength"; or "styles".',
    )
    lora: str | None = Field(default=None, min_length=1, max_length=256, description="A LoRA, of which the weight.")
    replace: str | None = Field(
        default=None, min_length=1, max_length=2_000, description="A text of the prompts that each value stands for."
    )
    values: tuple[Any, ...] = Field(
        min_length=1, max_length=_MOST_VALUES, strict=False, description="One for each place along the axis."
    )
    label: str | None = Field(default=None, min_length=1, max_length=64, description="Its name on the contact sheet.")

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.field, self.lora, self.replace)) != 1:
            raise ValueError("an axis has one of field, lora and replace")
        return self

    @property
    def name(self) -> str:
        """What it is called on the contact sheet."""
        return self.label or self.field or self.lora or self.replace or ""


class BatchRequest(RequestPart):
    """The body of POST /batches."""

    request: dict[str, Any] = Field(
        description="A request as POST /generate takes it; what the axes say may be left out."
    )
    axes: tuple[BatchAxis, ...] = Field(
        min_length=1,
        max_length=_MOST_AXES,
        strict=False,
        description="The first are the columns of the contact sheet, the second its rows, others its pages.",
    )
    styles: tuple[str, ...] = Field(
        default=(), max_length=16, strict=False, description="Styles of the settings that all prompts get."
    )
    name: str = Field(default="", max_length=200, description="For its owner.")
    window_s: float = Field(
        default=86_400.0, ge=1.0, le=604_800.0, description="Seconds after which what isn't drawn is given up."
    )
