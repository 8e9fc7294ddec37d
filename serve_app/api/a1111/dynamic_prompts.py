"""The extension sd-dynamic-prompts of AUTOMATIC1111: a script in alwayson_scripts, variants of the native request.

    "alwayson_scripts": {"Dynamic Prompts v2.17.1": {"args": [true]}}

Each image has a choice of its own there, by its seed; so a request for several images becomes as many jobs here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deployments.engine.errors import InvalidRequest
from serve_app.api.a1111.controlnet import SCRIPTS
from serve_app.api.a1111.options import Loose, Switch
from serve_app.api.a1111.scripts import positional

TITLE = "Dynamic Prompts v2.17.1"
"""Of its last release. Its version is a part of its title, and any is taken."""

_NAME = re.compile(r"dynamic prompts(?: v[\w.+-]*)?", re.IGNORECASE)
_MAY_VARY = re.compile(r"\{|__")
_LABEL = "Dynamic Prompts"
_ORDER = (
    "is_enabled",
    "is_combinatorial",
    "combinatorial_batches",
    "is_magic_prompt",
    "is_feeling_lucky",
    "is_attention_grabber",
    "min_attention",
    "max_attention",
    "magic_prompt_length",
    "magic_temp_value",
    "use_fixed_seed",
    "unlink_seed_from_prompt",
    "disable_negative_prompt",
    "enable_jinja_templates",
    "no_image_generation",
)

# what would make other prompts of the text than its variants, and how to ask for the like
_REFUSED = {
    "is_combinatorial": "POST /batches draws every combination",
    "is_feeling_lucky": "a prompt isn't looked up elsewhere",
    "enable_jinja_templates": "write variants, {red|blue}",
    "no_image_generation": "leave the request out",
}
_LEFT_OUT = ("is_magic_prompt", "is_attention_grabber", "unlink_seed_from_prompt")


class DynamicPromptsScript(Loose):
    """The script's arguments as far as they are read, with what its page shows at first."""

    is_enabled: Switch = True
    is_combinatorial: Switch = False
    is_magic_prompt: Switch = False
    is_feeling_lucky: Switch = False
    is_attention_grabber: Switch = False
    use_fixed_seed: Switch = False
    unlink_seed_from_prompt: Switch = False
    enable_jinja_templates: Switch = False
    no_image_generation: Switch = False


def script_of(scripts: Mapping[str, Any] | None) -> DynamicPromptsScript | None:
    """The script if it is switched on; None if not. Raises InvalidRequest for arguments that can't be read."""
    for name in filter(_NAME.fullmatch, scripts or {}):
        script = positional(DynamicPromptsScript, _LABEL, _ORDER, (scripts or {})[name])
        if script is not None and script.is_enabled:
            return script
    return None


def asked_for(scripts: dict[str, Any], left_out: Callable[[str, str], None]) -> bool:
    """Whether always-on scripts ask for variants; the script is taken out of them.

    Args:
        scripts: of the request, by their titles in any case.
        left_out: told of what can't be done, with the field; may raise InvalidRequest.

    Raises:
        InvalidRequest: an argument can't be read, or asks for other prompts than the text's variants.
    """
    script = script_of(scripts)
    for name in list(filter(_NAME.fullmatch, scripts)):
        del scripts[name]
    if script is None:
        return False
    for argument, instead in _REFUSED.items():
        if getattr(script, argument):
            raise InvalidRequest(f"{SCRIPTS}.{_LABEL}: {argument} isn't supported here: {instead}", SCRIPTS)
    for argument in _LEFT_OUT:
        if getattr(script, argument):
            left_out(SCRIPTS, f"{SCRIPTS}.{_LABEL}: {argument} has no effect here: the seed chooses among variants")
    return True


def vary(texts: Iterable[str | None]) -> bool:
    """Whether images of these texts may differ in their prompts."""
    return any(text is not None and _MAY_VARY.search(text) is not None for text in texts)
