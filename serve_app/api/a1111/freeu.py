"""FreeU as Forge has it built in: a script in alwayson_scripts, FreeU of the native request.

    "alwayson_scripts": {"FreeU Integrated (SD 1.x, SD 2.x, SDXL)": {"args": [true, 1.3, 1.4, 0.9, 0.2, 0, 1]}}

Forge takes the second version of its authors' code, whose factors b1 and b2 grow with a place's activation. Here they
are factors, as in diffusers, which is said with each picture.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from serve_app.api.a1111.controlnet import SCRIPTS
from serve_app.api.a1111.options import Loose, Switch
from serve_app.api.a1111.scripts import positional

TITLES = ("FreeU Integrated (SD 1.x, SD 2.x, SDXL)", "FreeU Integrated")
"""Its present one, and the one that it had first."""

_ORDER = ("enabled", "b1", "b2", "s1", "s2", "start", "end")


class FreeUScript(Loose):
    """The script's arguments, with what Forge's page shows at first."""

    enabled: Switch = False
    b1: float = Field(default=1.01, ge=0.0, le=4.0)
    b2: float = Field(default=1.02, ge=0.0, le=4.0)
    s1: float = Field(default=0.99, ge=0.0, le=4.0)
    s2: float = Field(default=0.95, ge=0.0, le=4.0)
    start: float = Field(default=0.0, ge=0.0, le=1.0)
    end: float = Field(default=1.0, ge=0.0, le=1.0)


def freeu_of(
    scripts: dict[str, Any], left_out: Callable[[str, str], None], warnings: list[str]
) -> dict[str, float] | None:
    """The native request's FreeU that always-on scripts ask for; its script is taken out of them.

    Args:
        scripts: of the request, by their titles in any case.
        left_out: told of what can't be done, with the field; may raise InvalidRequest.
        warnings: of what is done otherwise.

    Raises:
        InvalidRequest: an argument can't be read.
    """
    found: dict[str, float] | None = None
    for title in TITLES:
        for name in [name for name in scripts if name.lower() == title.lower()]:
            script = positional(FreeUScript, title, _ORDER, scripts.pop(name))
            if script is None or not script.enabled:
                continue
            if (script.start, script.end) != (0.0, 1.0):
                part = f"a part of the steps ({script.start:g} to {script.end:g})"
                left_out(SCRIPTS, f"{SCRIPTS}.{title}: {part} isn't supported here: all of them have it")
            found = script.model_dump(include={"b1", "b2", "s1", "s2"})
    if found is not None:
        warnings.append(
            f"{TITLES[1]}: FreeU's first version is drawn, whose b1 and b2 weigh more than in Forge's second"
        )
    return found
