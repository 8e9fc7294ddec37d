"""Darkroom by `darkroom serve`: the default configuration, and one of a user's own checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.http_clients import DarkroomClient
from benchmarks.peers.contender import ROOT, Contender, Place
from benchmarks.peers.requests import DEMO, REAL
from benchmarks.servers import darkroom_config
from benchmarks.service_requests import ImageRequest

_WAIT_S = 600.0
# its Ray asks for no token of other shells
_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled"}


def default_configuration(place: Place) -> dict[str, Any]:
    """serve_config.yaml on the place's port, its data in the place's folder.

    Pictures are judged as ever but not withheld, and no client asks too often.
    """
    content = darkroom_config(ROOT / "serve_config.yaml", place.folder, place.port, safety=True)
    arguments = content["applications"][0]["args"]
    arguments["safety"] |= {"mode": "flag"}
    arguments["access"] |= {"requests": None, "generations": None}
    return content


def eager_configuration(place: Place) -> dict[str, Any]:
    """The same, but forwards are compiled when they are first taken, and the compiler is in a hurry."""
    content = default_configuration(place)
    engine = content["applications"][0]["args"]["stages"]["sd15"]["engine"]
    engine["compile"] |= {"after_steps": 1, "niceness": 0, "threads": 2}
    return content


def own_checkpoint(place: Place) -> dict[str, Any]:
    """A user's own checkpoint, as README.md shows it, with the demo's classifier."""
    content = default_configuration(place)
    arguments = content["applications"][0]["args"]
    limits = {"steps": {"min": 1, "max": 50}, "width": {"min": 64, "max": 1024}, "height": {"min": 64, "max": 1024}}
    model = {"family": "sd15", "source": str(place.checkpoint), "limits": limits}
    kept = ("jobs", "images", "provenance", "access", "safety")
    content["applications"][0]["args"] = {
        "default_model": "real",
        "models": {"real": model},
        **{name: arguments[name] for name in kept},
    }
    return content


def _command(configuration: Callable[[Place], dict[str, Any]]) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        path: Path = place.folder / "config.yaml"
        path.write_text(yaml.safe_dump(configuration(place)), encoding="utf-8")
        return [str(place.bin / "darkroom"), "serve", str(path)]

    return command


def running(url: str, model: str, like: ImageRequest) -> Contender:
    """A Darkroom that runs already."""
    return Contender(
        name="running",
        what="a Darkroom that runs already",
        checkpoint="own",
        like=like,
        command=None,
        client=lambda http: DarkroomClient(http, model, _WAIT_S),
        health="/ready",
        url=url,
    )


DARKROOM = Contender(
    name="darkroom",
    what="Darkroom, its default configuration",
    checkpoint="demo",
    like=DEMO,
    command=_command(default_configuration),
    client=lambda http: DarkroomClient(http, "demo-sd15", _WAIT_S),
    health="/ready",
    environment=_ENVIRONMENT,
)
EAGER_DARKROOM = replace(
    DARKROOM, name="darkroom-eager", what="Darkroom, compiling at once", command=_command(eager_configuration)
)
REAL_DARKROOM = replace(
    DARKROOM,
    name="real-darkroom",
    what="Darkroom, its default settings",
    checkpoint="real",
    like=REAL,
    command=_command(own_checkpoint),
    client=lambda http: DarkroomClient(http, "real", _WAIT_S),
)
