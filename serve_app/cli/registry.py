"""`darkroom models status, set, drain, resume, alias, unalias, changes`: models of a running service are changed."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.cli.options import DEFAULT_URL, AsJson, Key, Url
from serve_app.cli.output import Failure, reporting, say, write_json, write_table

if TYPE_CHECKING:
    from serve_app.cli.client import Service

# seconds between two looks at a model whose jobs are to end
_POLL_S = 1.0

_RANGE = re.compile(r"([0-9.]+)\.\.([0-9.]+)", re.ASCII)

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the configuration file.")]
_Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The further name.")]
_Fields = Annotated[
    list[str],
    typer.Argument(
        metavar="FIELD=VALUE...",
        help="A default (steps=20), a limit (limits.steps=1..30) or the tenants (tenants=alice,bob). Without a value "
        "(steps=) it is what the configuration file says.",
    ),
]


def status(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show the models and aliases as they are now, also those that don't serve."""
    with reporting(as_json):
        _show(_called(url, key, lambda service: service.get("/admin/models")), as_json)


def set_fields(
    model: _Model, fields: _Fields, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """Change some of a model's defaults, limits and tenants."""
    with reporting(as_json):
        patch = _patch(fields)
        _show(_called(url, key, lambda service: service.patch(f"/admin/models/{model}", patch)), as_json)


def drain(
    model: _Model,
    wait: Annotated[bool, typer.Option("--wait", help="Return when its jobs have ended.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let a model finish its jobs and take no more."""

    async def drained(service: "Service") -> dict[str, Any]:
        answer = await service.patch(f"/admin/models/{model}", {"serving": False})
        while wait and (unfinished := _unfinished(answer, model)):
            say(f"{unfinished} jobs are unfinished")
            await asyncio.sleep(_POLL_S)
            answer = await service.get("/admin/models")
        return answer

    with reporting(as_json):
        _show(_called(url, key, drained), as_json)


def resume(model: _Model, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Let a drained model take requests again."""
    with reporting(as_json):
        _show(_called(url, key, lambda service: service.patch(f"/admin/models/{model}", {"serving": True})), as_json)


def alias(
    name: _Alias,
    model: _Model,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HASH", help="Of the weights that it means, and of no others.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let a further name mean a model."""
    with reporting(as_json):
        body = {"model": model, "sha256": sha256}
        _show(_called(url, key, lambda service: service.put(f"/admin/aliases/{name}", body)), as_json)


def unalias(name: _Alias, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Forget a further name."""
    with reporting(as_json):
        _show(_called(url, key, lambda service: service.delete(f"/admin/aliases/{name}")), as_json)


def changes(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Most changes shown.")] = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show who has changed what, newest first."""
    with reporting(as_json):
        answer = _called(url, key, lambda service: service.get("/admin/changes", limit=limit))
        if as_json:
            write_json(answer)
            return
        rows = [
            (
                str(line["version"]),
                line["at"],
                f"{line['tenant']} {line['key_id'] or ''}".strip(),
                f"{line['kind']} {line['name']}",
                json.dumps(line["before"]),
                json.dumps(line["after"]),
            )
            for line in answer["changes"]
        ]
        write_table(("CHANGE", "AT", "BY", "OF", "BEFORE", "AFTER"), rows)


def _called(url: str, key: str | None, call: Callable[["Service"], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    from serve_app.cli.client import Service

    async def called() -> dict[str, Any]:
        async with Service(url, key) as service:
            return await call(service)

    return asyncio.run(called())


def _patch(fields: Sequence[str]) -> dict[str, Any]:
    """The body of a change. Raises Failure for a field without `=`."""
    patch: dict[str, Any] = {}
    for field in fields:
        name, equals, text = field.partition("=")
        if not equals:
            raise Failure("invalid_request", f"{field!r} isn't FIELD=VALUE")
        if name == "tenants":
            patch[name] = text.split(",") if text else None
            continue
        part, _, own = name.rpartition(".")
        patch.setdefault(part or "defaults", {})[own] = _value(text)
    return patch


def _value(text: str) -> Any:
    """A number, a range, or the text itself; None for none."""
    span = _RANGE.fullmatch(text)
    if span is not None:
        return {"min": _value(span[1]), "max": _value(span[2])}
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def _unfinished(answer: dict[str, Any], model: str) -> int:
    return sum(one["unfinished"] for one in answer["models"] if one["name"] == model)


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(answer)
        return
    rows = [
        (
            model["name"],
            "serves" if model["serving"] else "drained" if not model["unfinished"] else "drains",
            str(model["unfinished"]),
            "everybody" if model["tenants"] is None else ", ".join(model["tenants"]),
            json.dumps(model["changed"]) if model["changed"] else "",
        )
        for model in answer["models"]
    ]
    rows += [(alias["name"], f"means {alias['model']}", "", "", alias["sha256"] or "") for alias in answer["aliases"]]
    write_table(("MODEL", "STATE", "JOBS", "FOR", "CHANGED"), rows)
    for entry in answer["without_effect"]:
        say(f"{entry['kind']} {entry['name']} has no effect: {entry['problem']}")
