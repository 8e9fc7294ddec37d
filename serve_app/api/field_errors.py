"""What is wrong with a dialect's request, said in its own names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from deployments.engine.errors import InvalidRequest
from serve_app.schemas.generation_request import shown

Body = TypeVar("Body", bound=BaseModel)

# how much of a field's name an error repeats
_NAME = 64


def checked(form: type[Body], body: object) -> Body:
    """`body`, decoded JSON, as `form`. Raises InvalidRequest for the first thing that is wrong with it."""
    if not isinstance(body, Mapping):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return form.model_validate(body)
    except ValidationError as error:
        details: Any = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in details["loc"])[:_NAME].encode(errors="replace").decode()
    if details["type"] == "missing":
        raise InvalidRequest(f"{field} is missing", field)
    if details["type"] == "extra_forbidden":
        raise InvalidRequest(f"unknown field {field!a}", field)
    if details["type"] == "string_too_long":  # not repeated: it may be a prompt
        length, longest = len(details["input"]), details["ctx"]["max_length"]
        raise InvalidRequest(f"{field} has {length} characters, at most {longest}", field)
    message = str(details["msg"])
    raise InvalidRequest(f"{field} is {shown(details['input'])}: {message[:1].lower()}{message[1:]}", field)


@contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a field of the native request leave the block under the dialect's name for it."""
    try:
        yield
    except InvalidRequest as error:
        if error.field is None or error.field not in names:
            raise
        raise type(error)(error.message, names[error.field]) from None
