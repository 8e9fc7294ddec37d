"""The native request that a picture's infotext stands for, as far as it can be drawn here."""

from typing import Any, NamedTuple

from deployments.engine.errors import InvalidRequest
from serve_app.api.a1111.options import A1111Options
from serve_app.api.a1111.request import A1111TextToImage, fields_of_infotext
from serve_app.api.a1111.translation import Folders, translated
from serve_app.config.settings import Settings
from serve_app.images.infotext import parse_infotext
from serve_app.schemas.generation_request import FreeURequest, GenerationRequest
from serve_app.schemas.validation import validated


class Replay(NamedTuple):
    """A native request, None if there is none, and what it leaves out of the text."""

    request: GenerationRequest | None
    warnings: tuple[str, ...]


def replay_of(infotext: str, settings: Settings, folders: Folders) -> Replay:
    """The request of an infotext, without what isn't here.

    Args:
        infotext: of any origin.
        settings: with the models that the caller may use.
        folders: what LoRAs and upscalers there are.
    """
    fields = fields_of_infotext(infotext)
    left_out: list[str] = []
    while True:
        options: dict[str, Any] = fields.get("override_settings", {})
        try:
            body = validated(A1111TextToImage, fields)
            request, warnings = translated(body, settings, validated(A1111Options, options), None, folders)
        except InvalidRequest as error:
            left_out.append(error.message)
            wrong = error.field or ""
            part = next((part for part in (fields, options) if wrong in part), None)
            if part is None:
                return Replay(None, tuple(left_out))
            del part[wrong]
        else:
            return Replay(request.model_copy(update=_freeu(infotext, left_out)), (*left_out, *warnings))


def _freeu(infotext: str, left_out: list[str]) -> dict[str, FreeURequest]:
    """FreeU as Forge writes it, which A1111's requests don't have; what can't be drawn is left out and said."""
    found = parse_infotext(infotext)
    factors = {name: found[f"freeu_{name}"] for name in FreeURequest.model_fields if f"freeu_{name}" in found}
    if found.get("freeu_enabled") != "True":
        return {}
    try:
        return {"freeu": validated(FreeURequest, factors, of_texts=True)}
    except InvalidRequest as error:
        left_out.append(f"freeu_{error.message}")
        return {}
