"""What tenants used of the service, by day."""

from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from deployments.engine.errors import InvalidRequest
from serve_app.api.shared import CurrentService
from serve_app.auth.route_scopes import Reader
from serve_app.jobs.job import utc_now

# most days of one answer, and those of an answer that names none
_LONGEST, _USUAL = timedelta(days=366), timedelta(days=31)


class UsageView(BaseModel):
    """A tenant's use on one day."""

    tenant: str
    day: date
    device_s: float
    images: int
    refusals: int


class UsageList(BaseModel):
    """The days on which there was any, the oldest first."""

    since: date
    until: date
    usage: list[UsageView]


routes = APIRouter()


@routes.get("/usage")
async def usage(
    caller: Reader,
    service: CurrentService,
    since: Annotated[date | None, Query(examples=["2026-11-01"])] = None,
    until: Annotated[date | None, Query(examples=["2026-11-30"])] = None,
) -> UsageList:
    """Device seconds, images and refusals by tenant and UTC day; all tenants' for an admin's key."""
    last = until or utc_now().date()
    first = since or last - min(_USUAL, last - date.min)
    if first > last or last - first > _LONGEST:
        raise InvalidRequest(f"{first} to {last} isn't one of 1 to {_LONGEST.days} days", "since")
    days = await service.store.usage.days(tenant=caller.sees, since=first, until=last)
    views = [UsageView.model_validate(day, from_attributes=True) for day in days]
    return UsageList(since=first, until=last, usage=views)
