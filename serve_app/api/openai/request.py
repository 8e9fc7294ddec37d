"""OpenAI's image request, and what it asks of us: its own fields, and the native ones that `extra_body` adds.

The fields are those of the `openai` package 3.52, and those of other servers with this API. What changes no picture is
taken, and the answer warns of it; what can't be honoured (other file types, transparency) is refused, as is an unknown
field.
"""

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.engine.errors import InvalidRequest
from serve_app.api.errors import fields_named
from serve_app.schemas.generation_request import IMAGE_FIELDS, GenerationRequest
from serve_app.schemas.validation import validated

# the native fields that extra_body may not add: OpenAI has names of its own for them, or no use
_OTHERS = ("prompt", "model", "n", "output_format", "width", "height", "controlnets", "preview", "webhook_url")
EXTRA_FIELDS = tuple(name for name in GenerationRequest.model_fields if name not in (*_OTHERS, *IMAGE_FIELDS))

_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})", re.ASCII)

# names of other servers with this API (vLLM-Omni, SGLang, LocalAI) -> the native field that they mean
_SYNONYMS = {
    "num_inference_steps": "steps",
    "step": "steps",
    "true_cfg_scale": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
    "num_outputs_per_prompt": "n",
    "lora_name": "loras",
    "lora": "loras",
}

# of OpenAI and of those servers: quality and speed that these models don't have a choice of -> values that ask for none
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "quality": ("auto", "standard"),
    "style": (),
    "output_compression": (),
    "moderation": ("auto",),
    "complexity": (),
    "input_fidelity": (),
    "generator_device": (),
    "output_quality": ("default",),
    "enable_teacache": (False,),
    "vae_use_slicing": (False,),
    "vae_use_tiling": (False,),
}

# vLLM-Omni's names in its object `lora`
_LORA_NAMES, _LORA_SCALES = ("name", "lora_name", "adapter"), ("scale", "lora_scale")

# native field -> OpenAI's
NATIVE_NAMES = {"width": "size", "height": "size"}


class OpenAIImageRequest(BaseModel):
    """The body of POST /v1/images/generations; native fields may stand beside OpenAI's."""

    # the native fields that may stand here; what the stream's events are called
    extra_fields: ClassVar[tuple[str, ...]] = EXTRA_FIELDS
    event: ClassVar[str] = "image_generation"

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str | None = Field(default=None, description="A model of GET /v1/models; the default one where left out.")
    n: int | None = Field(default=None, ge=1, le=10)
    size: str | None = Field(default=None, description='"auto", the model\'s own size, or "WIDTHxHEIGHT".')
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp", "gif", "svg"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    background: Literal["transparent", "opaque", "auto"] | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = None
    style: Literal["vivid", "natural"] | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    moderation: Literal["low", "auto"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    svg: dict[str, Any] | None = None
    frame_count: int | None = None
    frame_duration_ms: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: dict[str, Any]) -> dict[str, Any]:
        """null is as good as nothing."""
        return {
            name: value for name, value in body.items() if value is not None and not (name == "model" and value == "")
        }

    @model_validator(mode="after")
    def _can_be_honoured(self) -> Self:
        for name in self.model_extra or ():
            if name not in (*self.extra_fields, *_SYNONYMS, *_WITHOUT_EFFECT):
                shown = name[:64].encode(errors="replace").decode()
                raise InvalidRequest(f"unknown field {shown!a}; extra fields: {', '.join(self.extra_fields)}", shown)
        if self.output_format in ("gif", "svg"):
            raise InvalidRequest(
                f"output_format is {self.output_format!r}: here it is png, jpeg or webp", "output_format"
            )
        for name in ("svg", "frame_count", "frame_duration_ms"):
            if getattr(self, name) is not None:
                raise InvalidRequest(f"{name} has no meaning here: images are png, jpeg or webp of one frame", name)
        if self.background == "transparent":
            raise InvalidRequest("background is 'transparent': these models paint every pixel", "background")
        return self

    @property
    def warnings(self) -> list[str]:
        """A line for each field that is taken and has no effect."""
        values = {name: self._value(name) for name in _WITHOUT_EFFECT}
        return [
            f"{name} has no effect here"
            for name, neutral in _WITHOUT_EFFECT.items()
            if values[name] is not None and values[name] not in neutral
        ]

    def _value(self, name: str) -> object:
        return getattr(self, name, None) if name in type(self).model_fields else (self.model_extra or {}).get(name)

    @property
    def identifier(self) -> str | None:
        """Whom the client says that it asks for, as OpenAI's answers repeat it."""
        return self.safety_identifier or self.user or None

    @property
    def previews(self) -> int:
        """How many partial images the stream is to have."""
        return (self.partial_images or 0) if self.stream else 0

    def generation(self) -> GenerationRequest:
        """What it asks for, in native words. Raises InvalidRequest."""
        with fields_named(self.native_names):
            return validated(GenerationRequest, self.native_fields())

    @property
    def native_names(self) -> dict[str, str]:
        """Native field -> the name under which this request has it."""
        return NATIVE_NAMES | {_SYNONYMS[name]: name for name in self.model_extra or () if name in _SYNONYMS}

    def native_fields(self) -> dict[str, Any]:
        """The members of the native request. Raises InvalidRequest."""
        fields: dict[str, Any] = {"prompt": self.prompt, "preview": self.previews > 0}
        if self.n is not None:
            fields["n"] = self.n
        if self.model is not None:
            fields["model"] = self.model
        if self.output_format is not None:
            fields["output_format"] = self.output_format
        if self.size is not None and self.size != "auto":
            found = _SIZE.fullmatch(self.size)
            if found is None:
                raise InvalidRequest(f'size is {ascii(self.size)[:64]}; expected "auto" or "WIDTHxHEIGHT"', "size")
            fields["width"], fields["height"] = int(found[1]), int(found[2])
        for name, value in (self.model_extra or {}).items():
            if name in _WITHOUT_EFFECT:
                continue
            native = _SYNONYMS.get(name, name)
            if native in fields:
                raise InvalidRequest(f"{name} says again what another field says: send one of them", name)
            if name == "lora_name":
                fields[native] = [{"name": value}]
            else:
                fields[native] = [_lora(value)] if name == "lora" else value
        return fields


def _lora(value: object) -> dict[str, Any]:
    """One of the native `loras` from vLLM-Omni's object. Raises InvalidRequest."""
    if not isinstance(value, dict):
        raise InvalidRequest("lora must be an object with name and scale", "lora")
    known = {**dict.fromkeys(_LORA_NAMES, "name"), **dict.fromkeys(_LORA_SCALES, "weight")}
    for name in value:
        if name not in known:
            raise InvalidRequest(f"lora.{ascii(name)[1:-1][:64]} can't be honoured: a LoRA has name and scale", "lora")
    return {known[name]: member for name, member in value.items() if member is not None}
