"""Refuses a number of a request that lies outside its range."""

from deployments.engine.errors import InvalidRequest
from serve_app.config.models import FloatRange, IntRange
from serve_app.schemas.generation_request import shown


def within(field: str, value: float, allowed: IntRange | FloatRange, hint: str = "") -> None:
    """Raise InvalidRequest, naming the field, the value and the range. hint: what else is good to know."""
    if value not in allowed:
        raise InvalidRequest(f"{field} is {shown(value)}, outside {allowed}{hint}", field)
