"""Options that several commands share, checks of their values, and the options that follow from a request's fields."""

import inspect
import re
from collections.abc import Callable, Collection
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import typer
from pydantic import BaseModel

from serve_app.cli.image_files import image_file

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_CONFIG = Path("serve_config.yaml")

_KEY = re.compile(r"[\x21-\x7e]+", re.ASCII)


def _http_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        known = False
    if not known or parts.query or parts.fragment:
        raise typer.BadParameter(f"{url!r} isn't a service's address: expected http://HOST:PORT or https://HOST")
    if parts.username is not None:  # which messages would repeat
        raise typer.BadParameter("the address contains a password: give the key with --key or DARKROOM_API_KEY")
    return url.rstrip("/")


def _header_text(key: str | None) -> str | None:
    if key is not None and _KEY.fullmatch(key) is None:
        raise typer.BadParameter("an API key consists of printable ASCII characters without spaces")
    return key


def existing_config(path: Path) -> Path:
    """Check that there is a configuration file. Raises BadParameter."""
    if path == DEFAULT_CONFIG and not path.exists():
        raise typer.BadParameter(f"there is no {path} in this folder: name a configuration file")
    if not path.exists():
        raise typer.BadParameter(f"there is no file {path}")
    return path


Url = Annotated[
    str,
    typer.Option("--url", envvar="DARKROOM_URL", callback=_http_address, metavar="URL", help="Address of the service."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="DARKROOM_API_KEY",
        callback=_header_text,
        metavar="KEY",
        help="API key. Other users of this machine can see the option, but not the variable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout, also for errors.")]
Config = Annotated[
    Path,
    typer.Argument(
        metavar="[CONFIG]", dir_okay=False, callback=existing_config, help="Configuration file of the service."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        dir_okay=False,
        allow_dash=True,
        callback=image_file,
        help="The image's file; its ending is the format (.png, .jpg, .webp), and of several images each name gets its "
        "seed. By itself darkroom-ID.png, ID being the job's; - is stdout.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id as `darkroom jobs` shows it, or all of it.")]
WaitS = Annotated[
    float | None,
    typer.Option("--wait", min=0.1, help="Seconds after which to wait no longer; the job goes on."),
]
OnlyModels = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="Only this model; may be repeated."),
]

# options of fields whose names would be long to type
_SHORT_NAMES = {
    "negative_prompt": ("--negative",),
    "negative_prompt_2": ("--negative-2",),
    "guidance_scale": ("--guidance",),
    "n": ("--count", "-n"),
    "scheduler": ("--sampler",),
    "timeout_s": ("--timeout",),
}


def with_options_of(
    request: type[BaseModel], without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command an option for each field of a request whose value is a text or a number.

    Fields that the command has parameters for are left out, and those of `without`. The others come as keywords, None
    where their option wasn't given.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters.values()
        named = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        left_out = {*without, *(parameter.name for parameter in named)}
        options = [_option(request, field) for field in request.model_fields if field not in left_out]
        signature = inspect.Signature([*named, *(option for option in options if option is not None)])
        command.__signature__ = signature  # type: ignore[attr-defined]  # where inspect looks, and so typer
        return command

    return decorate


def _option(request: type[BaseModel], field: str) -> inspect.Parameter | None:
    info = request.model_fields[field]
    kinds = set(get_args(info.annotation)) - {NoneType} if get_origin(info.annotation) is not Literal else {str}
    kinds = {str if get_origin(kind) is Literal else kind for kind in kinds or {info.annotation}}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool}:
        return None
    kind: Any = kinds.pop()
    option = typer.Option(None, *_SHORT_NAMES.get(field, (f"--{field.replace('_', '-')}",)), help=info.description)
    return inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None)
