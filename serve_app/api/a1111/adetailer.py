"""ADetailer as it is added to AUTOMATIC1111: tabs in alwayson_scripts, each a detail of the native request.

    "alwayson_scripts": {"ADetailer": {"args": [true, false, {"ad_model": "faces", "ad_denoising_strength": 0.4}]}}

What would change the picture and can't be done (another checkpoint, ControlNets, whole pictures) is left out, and said.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AliasChoices, BeforeValidator, Field

from deployments.engine.errors import InvalidRequest
from serve_app.api.a1111.controlnet import SCRIPTS
from serve_app.api.a1111.options import Loose, Switch, Whole
from serve_app.images.infotext import COMBINATIONS, DETAILER, TABS
from serve_app.schemas.generation_request import MAX_DETAILS, MAX_PARTS
from serve_app.schemas.validation import shown, validated

SCRIPT = DETAILER.lower()

_FILE_ENDING = re.compile(r"\.(pt|pth|onnx|safetensors)$", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*\[SEP\]\s*")
_SKIP = re.compile(r"\s*\[SKIP\]\s*")
_OF_IMAGE = "[PROMPT]"
_SAME = re.compile(r"use same .*|none|", re.IGNORECASE)

_NONE = "None"

# infotext's keys of a tab -> its arguments, where the one isn't made of the other
_ARGUMENTS = {
    "method to decide top k masks": "ad_mask_filter_method",
    "mask only top k": "ad_mask_k",
    "inpaint padding": "ad_inpaint_only_masked_padding",
    "use separate steps": "ad_use_steps",
    "use separate CFG scale": "ad_use_cfg_scale",
    "use separate sampler": "ad_use_sampler",
}


_Combination = Literal["none", "merge", "merge and invert"]


def _lowercase(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


class ADetailerTab(Loose):
    """A tab, as far as it is read."""

    ad_tab_enable: Switch = True
    ad_model: str = _NONE
    ad_model_classes: str = Field(default="", description="Of those that it finds, with commas between them.")
    ad_prompt: str = ""
    ad_negative_prompt: str = ""
    ad_confidence: float = 0.3
    ad_mask_filter_method: str = "Area"
    ad_mask_k: Whole = Field(default=0, validation_alias=AliasChoices("ad_mask_k", "ad_mask_k_largest"))
    ad_mask_min_ratio: float = 0.0
    ad_mask_max_ratio: float = 1.0
    ad_dilate_erode: Whole = 4
    ad_x_offset: Whole = 0
    ad_y_offset: Whole = 0
    ad_mask_merge_invert: Annotated[_Combination, BeforeValidator(_lowercase)] = "none"
    ad_mask_blur: Whole = 4
    ad_denoising_strength: float = Field(default=0.4, ge=0.0, le=1.0)
    ad_inpaint_only_masked: Switch = True
    ad_inpaint_only_masked_padding: Whole = 32
    ad_use_inpaint_width_height: Switch = False
    ad_inpaint_width: Whole = 512
    ad_inpaint_height: Whole = 512
    ad_use_steps: Switch = False
    ad_steps: Whole = 28
    ad_use_cfg_scale: Switch = False
    ad_cfg_scale: float = 7.0
    ad_use_checkpoint: Switch = False
    ad_checkpoint: str = _NONE
    ad_use_vae: Switch = False
    ad_vae: str = _NONE
    ad_use_sampler: Switch = False
    ad_sampler: str = "DPM++ 2M Karras"
    ad_scheduler: str = "Use same scheduler"
    ad_use_noise_multiplier: Switch = False
    ad_noise_multiplier: float = 1.0
    ad_use_clip_skip: Switch = False
    ad_clip_skip: Whole = 1
    ad_restore_face: Switch = False
    ad_controlnet_model: str = _NONE

    @property
    def off(self) -> bool:
        """Whether it does nothing."""
        return not self.ad_tab_enable or self.ad_model.lower() == "none" or _SKIP.fullmatch(self.ad_prompt) is not None

    @property
    def unsupported(self) -> Mapping[str, bool]:
        """What of it can't be done, by argument, and whether it is asked for."""
        return {
            "ad_mask_filter_method": self.ad_mask_k > 0 and self.ad_mask_filter_method.lower() != "area",
            "ad_inpaint_only_masked": not self.ad_inpaint_only_masked,
            "ad_checkpoint": self.ad_use_checkpoint and _SAME.fullmatch(self.ad_checkpoint) is None,
            "ad_vae": self.ad_use_vae and _SAME.fullmatch(self.ad_vae) is None,
            "ad_noise_multiplier": self.ad_use_noise_multiplier and self.ad_noise_multiplier != 1,
            "ad_clip_skip": self.ad_use_clip_skip,
            "ad_restore_face": self.ad_restore_face,
            "ad_controlnet_model": self.ad_controlnet_model.lower() != "none",
            "ad_mask_k": self.ad_mask_k > MAX_PARTS,
            "ad_prompt": any(len(_SEPARATOR.split(text)) > 1 for text in (self.ad_prompt, self.ad_negative_prompt)),
        }

    def sampler(self, name: str | None, schedule: str | None) -> tuple[str | None, str | None] | None:
        """Sampler and schedule, of which some may be the image's, `name` and `schedule`; None for just these."""
        if not self.ad_use_sampler:
            return None
        own_name, own_schedule = (_SAME.fullmatch(own) is None for own in (self.ad_sampler, self.ad_scheduler))
        if not (own_name or own_schedule):
            return None
        return self.ad_sampler if own_name else name, self.ad_scheduler if own_schedule else schedule

    def model(self, known: Sequence[str]) -> str | None:
        """The detector that it means; None if there is none of that name."""
        plain = _FILE_ENDING.sub("", self.ad_model)
        return next((name for name in known if name.lower() in (self.ad_model.lower(), plain.lower())), None)


class OfImage(NamedTuple):
    """What a tab takes over from the image: its size, and its prompts as their client wrote them."""

    width: int | None
    height: int | None
    prompt: str
    negative_prompt: str


def tabs_of(script: Any) -> list[ADetailerTab]:
    """The tabs that do something. Raises InvalidRequest."""
    arguments = script.get("args") if isinstance(script, Mapping) else script
    if not isinstance(arguments, list):
        raise InvalidRequest(f"{SCRIPTS}.{DETAILER}.args must be a list of tabs", SCRIPTS)
    if arguments and arguments[0] is False:
        return []
    tabs = [argument for argument in arguments if isinstance(argument, Mapping)]
    try:
        read = [validated(ADetailerTab, {k: v for k, v in tab.items() if v is not None}) for tab in tabs]
    except InvalidRequest as error:
        raise InvalidRequest(f"{SCRIPTS}.{DETAILER}: {error.message}", SCRIPTS) from None
    found = [tab for tab in read if not tab.off]
    if len(found) > MAX_DETAILS:
        raise InvalidRequest(f"{SCRIPTS}.{DETAILER}: {len(found)} tabs are on, at most {MAX_DETAILS}", SCRIPTS)
    return found


def skips_image(script: Any) -> bool:
    """Whether img2img's own drawing is to be left out."""
    arguments = script.get("args") if isinstance(script, Mapping) else script
    return isinstance(arguments, list) and len(arguments) > 1 and arguments[1] is True


def detail_of(tab: ADetailerTab, detector: str, image: OfImage, left_out: Callable[[str, str], None]) -> dict[str, Any]:
    """A tab as one of the native request's details, but for its sampler; texts as they are written.

    Args:
        tab: that is on.
        detector: that it means.
        image: what it takes over.
        left_out: told of what can't be done, with the field; may raise InvalidRequest.
    """
    for argument, asked in tab.unsupported.items():
        if asked:
            left_out(SCRIPTS, f"{SCRIPTS}.{DETAILER}: {argument} {shown(getattr(tab, argument))} isn't supported here")
    own_size = tab.ad_use_inpaint_width_height
    detail: dict[str, Any] = {
        "detector": detector,
        "classes": [name.strip() for name in tab.ad_model_classes.split(",") if name.strip()],
        "confidence": tab.ad_confidence,
        "max_count": min(tab.ad_mask_k or MAX_PARTS, MAX_PARTS),
        "min_area": tab.ad_mask_min_ratio,
        "max_area": tab.ad_mask_max_ratio,
        "offset_x": tab.ad_x_offset,
        "offset_y": -tab.ad_y_offset,  # upwards there
        "dilation": int(tab.ad_dilate_erode / 2),  # of both sides there
        "combine": next(name for name, label in COMBINATIONS.items() if label.lower() == tab.ad_mask_merge_invert),
        "blur": tab.ad_mask_blur,
        "padding": tab.ad_inpaint_only_masked_padding,
        "strength": tab.ad_denoising_strength,
        "prompt": _text(tab.ad_prompt, image.prompt),
        "negative_prompt": _text(tab.ad_negative_prompt, image.negative_prompt),
        "steps": tab.ad_steps if tab.ad_use_steps else None,
        "guidance_scale": tab.ad_cfg_scale if tab.ad_use_cfg_scale else None,
        "width": tab.ad_inpaint_width if own_size else image.width,
        "height": tab.ad_inpaint_height if own_size else image.height,
    }
    return {name: value for name, value in detail.items() if value is not None}


def _text(own: str, of_image: str) -> str | None:
    """The first of a tab's prompts; None where it has none of its own."""
    first = _SEPARATOR.split(own)[0]
    return first.replace(_OF_IMAGE, of_image) or None


def script_of_infotext(found: Mapping[str, str]) -> dict[str, Any] | None:
    """The script's arguments in an infotext's parameters; None without any."""
    tabs = []
    for ending in TABS:
        tab: dict[str, Any] = {}
        for key, value in found.items():
            name = key.removeprefix(f"{DETAILER} ")
            if name == key or not name.endswith(ending) or (not ending and name.endswith(TABS[1:])):
                continue
            name = name.removesuffix(ending)
            tab[_ARGUMENTS.get(name, f"ad_{name.lower().replace(' ', '_')}")] = value
        if "ad_model" in tab:
            tabs.append(tab)
    return {"args": [True, False, *tabs]} if tabs else None
