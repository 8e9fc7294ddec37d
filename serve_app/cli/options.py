"""Options that several commands share, and checks of their values."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

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
    Path, typer.Argument(metavar="[CONFIG]", exists=True, dir_okay=False, help="Configuration file of the service.")
]
OnlyModels = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="Only this model; may be repeated."),
]
