"""Lays the registry's entries over the settings of the configuration file. Pure.

An entry that no longer fits the file (its model is gone, or its limits are narrower now) has no effect, and a problem.
But what it keeps from clients stays kept from them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from serve_app.config.models import AddedModel, ModelAlias, ModelSettings
from serve_app.config.settings import Settings
from serve_app.registry.entries import AdditionState, Content, Entries, EntryKind
from serve_app.schemas.validation import invalid, shown

Model = TypeVar("Model", bound=BaseModel)

# fields of ModelSettings that an entry holds in part
_PARTS = ("defaults", "limits")


@dataclass(frozen=True, slots=True)
class Overlay:
    """The settings with the entries laid over them, and why some entries have no effect."""

    settings: Settings
    problems: Mapping[tuple[EntryKind, str], str]


def laid_over(base: Settings, entries: Entries) -> Overlay:
    """The settings of the file with the entries that fit them."""
    settings = base
    problems: dict[tuple[EntryKind, str], str] = {}
    for kind, with_entry in _WITH.items():
        for name, content in sorted(entries.of(kind).items()):
            try:
                settings = with_entry(settings, name, content)
            except InvalidRequest as error:
                problems[kind, name] = error.message
                if kind is EntryKind.MODEL and name in settings.models:
                    settings = _restricted(settings, name, content)
    return Overlay(settings, problems)


def check_change(base: Settings, after: Entries, kind: EntryKind, name: str) -> None:
    """Raise InvalidRequest if an entry would have no effect after its change."""
    content = after.of(kind).get(name)
    if content is not None:
        others = laid_over(base, after.replaced(kind, name, None)).settings
        _WITH[kind](others, name, content)


def merged(before: Content, patch: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a model after a patch: what the patch names is replaced, null is the configuration file's again."""
    content = dict(before)
    for name, value in patch.items():
        if name in _PARTS and value is not None:
            value = {**content.get(name, {}), **value}
            value = {field: of_field for field, of_field in value.items() if of_field is not None}
        if value in (None, {}):
            content.pop(name, None)
        else:
            content[name] = value
    return content


def _added_model(content: Content) -> AddedModel:
    """The model of a checkpoint's entry. Raises InvalidRequest."""
    ready = content["state"] == AdditionState.READY
    return validated_section(AddedModel, {**content["settings"], "addition": content["job"], "ready": ready})


def _with_checkpoint(settings: Settings, name: str, content: Content) -> Settings:
    if name in settings.models:
        raise InvalidRequest(f"{shown(name)} is a model of the configuration file", "name")
    return _changed(settings, {"models": {**settings.models, name: _added_model(content)}})


def _with_model(settings: Settings, name: str, content: Content) -> Settings:
    model = settings.models.get(name)
    if model is None:
        known = ", ".join(settings.models)
        raise UnknownCheckpoint(f"unknown model {shown(name)}; models: {known}", "model")
    fields = {field: getattr(model, field) for field in type(model).model_fields}
    for field, value in content.items():
        fields[field] = {**getattr(model, field).model_dump(), **value} if field in _PARTS else value
    changed = validated_section(type(model), fields)
    _check_memory(model, changed)
    return _changed(settings, {"models": {**settings.models, name: changed}})


def _restricted(settings: Settings, name: str, content: Content) -> Settings:
    """With what an entry that doesn't fit keeps from clients: the model's tenants, if they can be, else the model."""
    kept = {field: content[field] for field in ("tenants", "serving") if field in content}
    for part in (kept, {"serving": False} if kept else {}):
        try:
            return _with_model(settings, name, part)
        except InvalidRequest:
            continue  # (without keys there are no tenants, and the default model always serves)
    return settings


def _check_memory(model: ModelSettings, changed: ModelSettings) -> None:
    """Raise InvalidRequest for limits that the stages haven't planned their memory for."""
    if changed.limits.most_pixels > model.limits.most_pixels:
        raise InvalidRequest(
            f"limits allow {changed.limits.most_pixels} pixels, and the memory is planned for the configuration file's "
            f"{model.limits.most_pixels}: change the file to allow more",
            "limits",
        )
    if changed.limits.guidance_scale.max > 1 >= model.limits.guidance_scale.max:
        raise InvalidRequest(
            "limits.guidance_scale allows guidance, and the memory is planned without, as the configuration file says",
            "limits.guidance_scale",
        )


def _with_alias(settings: Settings, name: str, content: Content) -> Settings:
    alias = validated_section(ModelAlias, content)
    return _changed(settings, {"aliases": {**settings.aliases, name: alias}})


def _changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """With other values, and checked as a whole: parts that stay are checked no more. Raises InvalidRequest."""
    return validated_section(
        Settings, {**{field: getattr(settings, field) for field in Settings.model_fields}, **changes}
    )


def validated_section(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """Settings of a model or an alias, or all of them. Raises InvalidRequest, which names the field."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        if details["loc"] and details["type"] != "value_error":
            raise invalid(details, model) from None
        field = ".".join(map(str, details["loc"])) or None
        raise InvalidRequest(details["msg"].removeprefix("Value error, "), field) from None


# how an entry of each kind is laid over settings, in the order in which they need each other
_WITH: Mapping[EntryKind, Callable[[Settings, str, Content], Settings]] = {
    EntryKind.CHECKPOINT: _with_checkpoint,
    EntryKind.MODEL: _with_model,
    EntryKind.ALIAS: _with_alias,
}
