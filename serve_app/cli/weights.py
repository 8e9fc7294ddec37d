"""`darkroom models files, upload, remove`: LoRAs and other files of weights of a running service, added models."""

import asyncio
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from serve_app.cli.options import DEFAULT_URL, AsJson, Key, Url
from serve_app.cli.output import Failure, reporting, say, write_json, write_table

_Folder = Annotated[
    str,
    typer.Argument(metavar="FOLDER", help="loras, controlnets, ip_adapters, vaes, upscalers, detectors or embeddings."),
]


def files(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the files of weights that requests may name."""
    from serve_app.cli.client import Service

    async def listed() -> None:
        async with Service(url, key) as service:
            answer = await service.get("/admin/weights")
        if as_json:
            write_json(answer)
            return
        rows = [
            (folder, file["name"], f"{file['bytes'] / 1e6:.1f} MB", file["sha256"] or "")
            for folder, files in answer["folders"].items()
            for file in files
        ]
        write_table(("FOLDER", "NAME", "SIZE", "SHA256"), rows)

    with reporting(as_json):
        asyncio.run(listed())


def upload(
    folder: _Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A .safetensors file.")],
    name: Annotated[str | None, typer.Option("--name", help="Its name in requests, if not the file's own.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of another file of the name.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Put a file of weights into a folder of the service."""
    from serve_app.cli.client import Service

    async def uploaded() -> None:
        async with Service(url, key) as service:
            answer = await service.upload(_path(folder, name or file.stem), file, replace=str(replace).lower())
        if as_json:
            write_json(answer)
        else:
            say(f"{answer['name']}: {answer['bytes']} bytes, {answer['sha256']}")

    with reporting(as_json):
        asyncio.run(uploaded())


def remove(
    names: Annotated[
        list[str],
        typer.Argument(metavar="[FOLDER] NAME", help="A model that was added; with a folder a file of weights in it."),
    ],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove a model that was added, or delete a file of weights."""
    from serve_app.cli.client import Service

    async def removed(path: str) -> None:
        async with Service(url, key) as service:
            answer = await service.delete(path)
        if as_json:
            write_json(answer)

    with reporting(as_json):
        match names:
            case [model]:
                path = f"/admin/models/{quote(model, safe='')}"
            case [folder, name]:
                path = _path(folder, name)
            case _:
                raise Failure("invalid_request", f"expected a model, or a folder and a name, not {' '.join(names)!r}")
        asyncio.run(removed(path))


def _path(folder: str, name: str) -> str:
    return f"/admin/weights/{quote(folder, safe='')}/{quote(name, safe='')}"
