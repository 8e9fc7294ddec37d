"""`darkroom models`: list a running service's models; download and verify a configuration's checkpoints.

What changes models of a running service is in registry.py and weights.py.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from serve_app.cli import registry, weights
from serve_app.cli.config import read_settings
from serve_app.cli.options import DEFAULT_CONFIG, DEFAULT_URL, AsJson, Config, Key, OnlyModels, Url
from serve_app.cli.output import Failure, reporting, say, write_json, write_line, write_table

if TYPE_CHECKING:
    from serve_app.config.settings import Settings

models = typer.Typer(no_args_is_help=True, help="A service's models and their checkpoints.")
models.command()(registry.status)
models.command()(registry.add)
models.command("set")(registry.set_fields)
models.command()(registry.drain)
models.command()(registry.resume)
models.command()(registry.alias)
models.command()(registry.unalias)
models.command()(registry.changes)
models.command()(weights.files)
models.command()(weights.upload)
models.command()(weights.remove)


@models.command("list")
def list_models(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the models of a running service."""
    with reporting(as_json):
        answer = asyncio.run(_catalogue(url, key))
        if as_json:
            write_json(answer)
        else:
            rows = [_row(model, answer["default"]) for model in answer["models"]]
            write_table(("MODEL", "FAMILY", "SIZE", "STEPS", "SAMPLER", "REFINER", "LICENCE", "DESCRIPTION"), rows)


@models.command()
def pull(config: Config = DEFAULT_CONFIG, model: OnlyModels = None, as_json: AsJson = False) -> None:
    """Download the hub checkpoints that a configuration names: safetensors only, into Hugging Face's cache."""
    with reporting(as_json):
        from serve_app.config.hub_checkpoints import needs
        from serve_app.config.hub_checkpoints import pull as pull_all

        settings = read_settings(config)
        pulled = pull_all(needs(settings, _known(settings, model)), say)
        if as_json:
            write_json({"pulled": [{**asdict(repository), "folder": str(repository.folder)} for repository in pulled]})
        for repository in () if as_json else pulled:
            write_line(f"{repository.repository}  {repository.size / 1e9:.2f} GB  {repository.folder}")
        if not pulled:
            say(f"{config} names no checkpoint of the hub: nothing to download")


@models.command()
def verify(config: Config = DEFAULT_CONFIG, model: OnlyModels = None, as_json: AsJson = False) -> None:
    """Load every checkpoint of a configuration as the service would, and show what fails. Downloads nothing."""
    # read when huggingface_hub is imported: a file that isn't in its cache is then an error, not a download
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with reporting(as_json):
        from serve_app.cli.verification import verify as verify_all

        settings = read_settings(config)
        verified = []
        for part in verify_all(settings, _known(settings, model)):
            verified.append(part)
            if not as_json:
                write_line(f"{part.checkpoint}  {part.part}: {'ok' if part.error is None else part.error}")
        document = {"verified": [{**asdict(part), "ok": part.error is None} for part in verified]}
        wrong = [part for part in verified if part.error is not None]
        if wrong:
            message = f"{len(wrong)} of {len(verified)} parts can't be loaded"
            raise Failure("checkpoint_error", message, document=document)
        if as_json:
            write_json(document)


async def _catalogue(url: str, key: str | None) -> dict[str, Any]:
    from serve_app.cli.client import Service

    async with Service(url, key) as service:
        return await service.get("/models")


def _row(model: dict[str, Any], default: str) -> tuple[str, ...]:
    defaults, refiner = model["defaults"], model["refiner"]
    return (
        model["name"] + (" (default)" if model["name"] == default else ""),
        model["family"],
        f"{defaults['width']}x{defaults['height']}",
        str(defaults["steps"]),
        defaults["sampler"],
        refiner["model"] if refiner else "",
        model["licence"],
        model["description"],
    )


def _known(settings: "Settings", names: Sequence[str] | None) -> Sequence[str] | None:
    """`names`, or None for all models. Raises Failure for an unknown name."""
    unknown = [name for name in names or () if name not in settings.models]
    if unknown:
        known = ", ".join(settings.models)
        raise Failure("unknown_model", f"unknown model {', '.join(unknown)}; known: {known}", "model")
    return names or None
