"""`darkroom usage`: what tenants used of a running service."""

import asyncio
import csv
import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from serve_app.cli.options import DEFAULT_URL, AsJson, Key, Url
from serve_app.cli.output import reporting, write_json, write_table

_COLUMNS = ("tenant", "day", "device_s", "images", "refusals")


def usage(
    url: Url = DEFAULT_URL,
    key: Key = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day (UTC); by default 31 days before the last.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day; by default today.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show device seconds, images and refusals by tenant and day; all tenants' with an admin's key."""
    if as_csv and as_json:
        raise typer.BadParameter("--csv and --json are two forms of the same: choose one")
    with reporting(as_json):
        answer = asyncio.run(_used(url, key, since, until))
        if as_json:
            write_json(answer)
        elif as_csv:
            rows = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
            rows.writeheader()
            rows.writerows(answer["usage"])
        else:
            columns = tuple(name.upper() for name in _COLUMNS)
            shown = [{**day, "device_s": round(day["device_s"], 1)} for day in answer["usage"]]
            write_table(columns, [tuple(str(day[name]) for name in _COLUMNS) for day in shown])


async def _used(url: str, key: str | None, since: datetime | None, until: datetime | None) -> dict[str, Any]:
    from serve_app.cli.client import Service

    days = {"since": since, "until": until}
    async with Service(url, key) as service:
        return await service.get(
            "/usage", **{name: day.date().isoformat() for name, day in days.items() if day is not None}
        )
