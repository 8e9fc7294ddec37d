"""What a client sent as a pydantic model; the first thing that is wrong with it in words for the client."""

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from deployments.engine.errors import InvalidRequest

Model = TypeVar("Model", bound=BaseModel)

# how much of a refused value, and of a field's name, an error repeats
_SHOWN = 64


def validated(model: type[Model], body: object, *, of_texts: bool = False) -> Model:
    """A model from decoded JSON.

    Args:
        model: What the body has to be.
        body: As it was decoded.
        of_texts: It comes from a form, where numbers and the like are texts.

    Raises:
        InvalidRequest: For the first thing that is wrong; names the field and the value.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest(f"the body must be a JSON object, not {_json_type(body)}")
    try:
        return model.model_validate(body, strict=False if of_texts else None)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False)[0], model) from None


def invalid(details: Any, model: type[BaseModel] | None = None) -> InvalidRequest:
    """One of pydantic's errors as ours; `model` is what was validated, None if its fields mustn't be listed."""
    # a union adds the names of its branches to the path
    path = [part for part in details["loc"] if part not in ("RefinerRequest", "bool")]
    field = ".".join(str(part)[:_SHOWN].encode(errors="replace").decode() for part in path)
    match details["type"]:
        case _ if not field:
            return InvalidRequest("the body holds a key that isn't a string")
        case "missing":
            return InvalidRequest(f"{field} is missing", field)
        case "extra_forbidden" if model is not None:
            known = model if len(path) == 1 else _part(model, str(path[0]))
            return InvalidRequest(f"unknown field {shown(field)}; fields: {', '.join(known.model_fields)}", field)
        case "string_too_long":  # not repeated: it may be a prompt
            length, longest = len(details["input"]), details["ctx"]["max_length"]
            return InvalidRequest(f"{field} has {length} characters, at most {longest}", field)
        case "model_type" | "dict_type":  # pydantic's words are Python's
            return InvalidRequest(f"{field} is {shown(details['input'])}: expected a JSON object", field)
        case "list_type" | "tuple_type":
            return InvalidRequest(f"{field} is {shown(details['input'])}: expected a JSON array", field)
    message = str(details["msg"])
    return InvalidRequest(f"{field} is {shown(details['input'])}: {message[:1].lower()}{message[1:]}", field)


def _part(model: type[BaseModel], field: str) -> type[BaseModel]:
    """The class of the objects in a field."""
    annotation = model.model_fields[field].annotation
    classes = (one for one in (annotation, *get_args(annotation)) if isinstance(one, type))
    return next(one for one in classes if issubclass(one, BaseModel))


def shown(value: object) -> str:
    """A refused value as an error repeats it."""
    if isinstance(value, (dict, list)):
        return f"a JSON {_json_type(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 128:
        return "a number of more than 38 digits"  # Python refuses to write out very long ones
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
