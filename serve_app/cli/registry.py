"""`darkroom models status, add, set, drain, resume, alias, unalias, changes`: changes of a running service's models."""

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

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the service.")]
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


def add(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Its name in requests.")],
    source: Annotated[
        str,
        typer.Option(
            "--source",
            metavar="PATH",
            help="A diffusers folder or a .safetensors file, where the service runs; or a repository of the hub.",
        ),
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="A default (steps=20), a limit (limits.steps=1..30) or the tenants (tenants=alice,bob).",
        ),
    ] = None,
    family: Annotated[
        str | None, typer.Option("--family", help="Its architecture; of most .safetensors files it is known.")
    ] = None,
    vae: Annotated[str | None, typer.Option("--vae", metavar="PATH", help="Another VAE in place of its own.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of a repository: a branch, a tag or a commit.")
    ] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="Of a folder's weight files, such as fp16.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return before its first image is drawn.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Add a model. Requests may name it when its first image has been drawn."""
    said = {"family": family, "vae": vae, "variant": variant, "revision": revision}
    with reporting(as_json):
        body = {"name": model, "source": source, **_patch(fields or ())}
        body |= {name: value for name, value in said.items() if value is not None}

        async def added(service: "Service") -> dict[str, Any]:
            answer = await service.post("/admin/models", body)
            return answer if no_wait else await _drawn(service, answer, model)

        _show(_called(url, key, added), as_json)


async def _drawn(service: "Service", answer: dict[str, Any], model: str) -> dict[str, Any]:
    """The models when one that is being added is ready. Raises Failure if it can't be."""
    from serve_app.cli.client import ended

    addition = _addition(answer, model)
    job_id = addition["job_id"]
    while addition["state"] == "downloading":
        await asyncio.sleep(_POLL_S)
        addition = _addition(answer := await service.get("/admin/models"), model)
        if addition["download"] is not None:
            download = addition["download"]
            say(f"{download['downloaded_bytes'] / 1e6:.0f} of {download['bytes'] / 1e6:.0f} MB are downloaded")
    if addition["state"] == "failed":
        raise Failure("model_not_added", f"{model} is failed: {addition['problem']}", job_id=job_id)
    await ended(service, {"job_id": job_id, "links": {"events": f"jobs/{job_id}/events"}}, None)
    while addition["state"] == "adding":
        await asyncio.sleep(_POLL_S)
        answer = await service.get("/admin/models")
        addition = _addition(answer, model)
    if addition["state"] != "ready":
        raise Failure("model_not_added", f"{model} is {addition['state']}: {addition['problem']}", job_id=job_id)
    return answer


def _addition(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """How far a model is. Raises Failure if it has gone."""
    for one in answer["models"]:
        if one["name"] == model and one["added"] is not None:
            addition: dict[str, Any] = one["added"]
            return addition
    raise Failure("model_not_added", f"{model} was removed meanwhile")


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


def _state(model: dict[str, Any]) -> str:
    if model["added"] is not None and model["added"]["state"] != "ready":
        state: str = model["added"]["state"]
        return state
    if model["serving"]:
        return "serves"
    return "drains" if model["unfinished"] else "drained"


def _unfinished(answer: dict[str, Any], model: str) -> int:
    return sum(one["unfinished"] for one in answer["models"] if one["name"] == model)


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(answer)
        return
    rows = [
        (
            model["name"],
            _state(model),
            str(model["unfinished"]),
            "everybody" if model["tenants"] is None else ", ".join(model["tenants"]),
            json.dumps(model["changed"]) if model["changed"] else "",
        )
        for model in answer["models"]
    ]
    rows += [(alias["name"], f"means {alias['model']}", "", "", alias["sha256"] or "") for alias in answer["aliases"]]
    write_table(("MODEL", "STATE", "JOBS", "FOR", "CHANGED"), rows)
    for model in answer["models"]:
        if model["added"] is not None and model["added"]["problem"] is not None:
            say(f"{model['name']} wasn't added: {model['added']['problem']}")
    for entry in answer["without_effect"]:
        say(f"{entry['kind']} {entry['name']} has no effect: {entry['problem']}")
