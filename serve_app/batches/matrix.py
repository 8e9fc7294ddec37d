"""A matrix of requests: every combination of its axes' values, the first axis going fastest.

A cell is the request with each axis' value put in: fields first, then weights of LoRAs, then texts of prompts. Styles
come last, around what is there.
"""

import copy
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import PromptStyle
from serve_app.schemas.batch_request import BatchRequest
from serve_app.schemas.generation_request import PROMPTS, GenerationRequest
from serve_app.schemas.validation import shown, validated

STYLES = "styles"

# of a value's text on the contact sheet
_LABEL_CHARS = 200


class Matrix(BaseModel):
    """A request with its axes, and the texts of the styles that they name, as they were when it came."""

    model_config = ConfigDict(frozen=True)

    asked: BatchRequest
    styles: Mapping[str, PromptStyle]

    @classmethod
    def of(cls, asked: BatchRequest, known: Mapping[str, PromptStyle], max_cells: int) -> "Matrix":
        """The matrix of a request. Raises InvalidRequest, for the first cell that can't be a request, too."""
        for index, axis in enumerate(asked.axes):
            field = (axis.field or "").partition(".")[0]
            if field and field not in (STYLES, *GenerationRequest.model_fields):
                fields = ", ".join((STYLES, *GenerationRequest.model_fields))
                raise InvalidRequest(f"unknown field {shown(axis.field)}; fields: {fields}", f"axes.{index}.field")
        total = math.prod(len(axis.values) for axis in asked.axes)
        if total > max_cells:
            raise InvalidRequest(f"the axes make {total} requests, at most {max_cells}", "axes")
        of_axes = [
            name for axis in asked.axes if axis.field == STYLES for value in axis.values for name in _names(value)
        ]
        wanted = [*asked.styles, *of_axes]
        for name in wanted:
            if name not in known:
                raise InvalidRequest(f"unknown style {shown(name)}; styles: {', '.join(known) or 'none'}", STYLES)
        matrix = cls(asked=asked, styles={name: known[name] for name in wanted})
        for cell in range(total):
            matrix.request(cell)
        return matrix

    @property
    def total(self) -> int:
        """The number of its cells."""
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of values of each axis."""
        return tuple(len(axis.values) for axis in self.asked.axes)

    def places(self, cell: int) -> tuple[int, ...]:
        """A cell's place along each axis."""
        places = []
        for size in self.sizes:
            cell, place = divmod(cell, size)
            places.append(place)
        return tuple(places)

    def request(self, cell: int) -> GenerationRequest:
        """A cell's request. Raises InvalidRequest."""
        fields = copy.deepcopy(self.asked.request)
        styles = list(self.asked.styles)
        values = [(axis, axis.values[place]) for axis, place in zip(self.asked.axes, self.places(cell), strict=True)]
        for axis, value in values:
            if axis.field == STYLES:
                styles += _names(value)
            elif axis.field is not None:
                _put(fields, axis.field, copy.deepcopy(value))
        for axis, value in values:
            if axis.lora is not None:
                _weigh(fields, axis.lora, value)
        for axis, value in values:
            if axis.replace is not None:
                _replace(fields, axis.replace, value)
        for name in styles:
            style = self.styles[name]
            fields["prompt"] = style.around_prompt(_text(fields, "prompt"))
            fields["negative_prompt"] = style.around_negative(_text(fields, "negative_prompt"))
        request = validated(GenerationRequest, fields)
        if request.webhook_url is not None:
            raise InvalidRequest("webhook_url has no place in a batch", "webhook_url")
        return request

    def labels(self, axis: int) -> tuple[str, ...]:
        """What the values of an axis are called on the contact sheet."""
        return tuple(_label(value) for value in self.asked.axes[axis].values)

    def title(self, cell: int) -> str:
        """A cell's values by their axes' names."""
        places = self.places(cell)
        return ", ".join(
            f"{axis.name}: {_label(axis.values[place])}" for axis, place in zip(self.asked.axes, places, strict=True)
        )


def _text(fields: dict[str, Any], field: str) -> str:
    text = fields.get(field) or ""
    if not isinstance(text, str):
        raise InvalidRequest(f"{field} is {shown(text)}: expected a string", field)
    return text


def _label(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LABEL_CHARS else f"{text[:_LABEL_CHARS]}…"


def _names(value: Any) -> list[str]:
    """The styles that a value names. Raises InvalidRequest."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest(f"a style is {shown(value)}: expected a name or a list of names", STYLES)
    return [name for name in names if name]


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a path such as `hires.strength` or `loras.0.weight`. Raises InvalidRequest."""
    *parents, last = path.split(".")
    place: Any = fields
    for part in parents:
        if isinstance(place, list):
            place = _item(place, part, path)
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            break
    if not isinstance(place, dict):
        raise InvalidRequest(f"{shown(path)} isn't a field of an object of the request", path)
    place[last] = value


def _item(place: list[Any], part: str, path: str) -> Any:
    index = int(part) if part.isascii() and part.isdigit() and len(part) < 4 else len(place)
    if index >= len(place):
        raise InvalidRequest(f"{shown(path)}: the request's list has {len(place)} objects, from 0", path)
    return place[index]


def _weigh(fields: dict[str, Any], name: str, weight: Any) -> None:
    """Give a LoRA of the request a weight; it gets the LoRA if it hasn't it. Raises InvalidRequest."""
    loras = fields.setdefault("loras", [])
    if not isinstance(loras, list) or not all(isinstance(lora, dict) for lora in loras):
        raise InvalidRequest("loras must be a list of objects", "loras")
    for lora in loras:
        if lora.get("name") == name:
            lora["weight"] = weight
            return
    loras.append({"name": name, "weight": weight})


def _replace(fields: dict[str, Any], text: str, value: Any) -> None:
    """Put a value in the place of a text of the prompts. Raises InvalidRequest if none of them has it."""
    found = False
    for field in PROMPTS:
        prompt = fields.get(field)
        if isinstance(prompt, str) and text in prompt:
            found = True
            fields[field] = prompt.replace(text, _label(value) if not isinstance(value, str) else value)
    if not found:
        raise InvalidRequest("no prompt of the request has the text that an axis replaces", "axes")
