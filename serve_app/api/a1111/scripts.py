"""Scripts of AUTOMATIC1111's requests: one that would do something is refused, but for SD upscale (sd_upscale.py).

Clients that repeat what the web UI or Forge shows send all of their built-in scripts, most of them switched off. Those
do nothing and are ignored, as are the ones that only stand for fields of the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.engine.errors import InvalidRequest
from serve_app.api.a1111.controlnet import SCRIPT, SCRIPTS, units_of
from serve_app.schemas.validation import Model, shown, validated

# of the web UI's page: by its API they change nothing there, whatever they hold
_OF_THE_PAGE = ("sampler", "seed", "refiner", "comments", "extra options", "hypertile", "api payload")

# what a script's argument is where it does nothing
_NEUTRAL = (None, False, "", "none", 0)

# keys of a unit that say which model it works with
_MODELS = ("model", "ad_model")


def steering_of(scripts: Mapping[str, Any], max_pixels: int) -> dict[str, list[dict[str, Any]]]:
    """The native fields of the ControlNets and references that always-on scripts ask for; `max_pixels` of a mask.

    Raises InvalidRequest, also for other scripts.
    """
    fields = units_of(None, max_pixels)
    for name, script in scripts.items():
        arguments = script.get("args") if isinstance(script, Mapping) else script
        if name.lower() == SCRIPT:
            fields = units_of(arguments, max_pixels)
        elif name.lower() not in _OF_THE_PAGE and not _does_nothing(arguments):
            raise InvalidRequest(f"{SCRIPTS}: script {ascii(name)[:64]} isn't here: switch it off", SCRIPTS)
    return fields


def positional(model: type[Model], title: str, order: Sequence[str], script: Any) -> Model | None:
    """A script's arguments by their names; None if its first one switches it off.

    Args:
        model: of the arguments that are read; those that are left out are as it has them.
        title: of the script, for errors.
        order: the names of all arguments that it has.
        script: its entry in alwayson_scripts.

    Raises:
        InvalidRequest: they are no list, or one of them can't be read.
    """
    arguments = script.get("args") if isinstance(script, Mapping) else script
    if arguments is not None and not isinstance(arguments, list):
        raise InvalidRequest(f"{SCRIPTS}.{title}.args must be a list of its arguments", SCRIPTS)
    if arguments and arguments[0] is False:
        return None
    named = zip(order, arguments or (), strict=False)  # a page may send more, or fewer
    try:
        return validated(model, {name: value for name, value in named if value is not None})
    except InvalidRequest as error:
        raise InvalidRequest(f"{SCRIPTS}.{title}: {error.message}", SCRIPTS) from None


def check_selected(name: str | None) -> None:
    """Raise InvalidRequest for a script that is chosen by name."""
    if name is not None and name.strip().lower() not in ("", "none"):
        raise InvalidRequest(f"script_name is {shown(name)}, no script here: leave it out", "script_name")


def _does_nothing(arguments: Any) -> bool:
    """Whether a script of these arguments is switched off: by its first one, by all of its units, or by all of them."""
    values = [arguments] if isinstance(arguments, Mapping) else arguments
    if not isinstance(values, list):
        return values is None
    units = [value for value in values if isinstance(value, Mapping)]
    if units:
        return values[0] is False or all(map(_is_off, units))
    return not values or values[0] is False or all(map(_is_neutral, values))


def _is_off(unit: Mapping[str, Any]) -> bool:
    models = [unit[key] for key in _MODELS if key in unit]
    return unit.get("enabled") is False or not unit or (bool(models) and all(map(_is_neutral, models)))


def _is_neutral(value: Any) -> bool:
    return (
        (value.lower() if isinstance(value, str) else value) in _NEUTRAL if not isinstance(value, list) else not value
    )
