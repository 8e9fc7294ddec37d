"""ControlNet as sd-webui-controlnet adds it to AUTOMATIC1111: units in alwayson_scripts, and its lists.

    GET /controlnet/version, /controlnet/model_list, /controlnet/module_list, /controlnet/control_types
    GET /controlnet/settings

A unit with an IP-Adapter's module is a reference picture. What would change the picture and can't be done (masks, other
modules, control modes) is refused.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import MAX_CONTROLS
from serve_app.api.service import Service
from serve_app.api.shared import CurrentService
from serve_app.auth.route_scopes import READ
from serve_app.images.decode import is_plain
from serve_app.schemas.generation_request import Fit, Preprocessor
from serve_app.schemas.validation import shown, validated

SCRIPT = "controlnet"
SCRIPTS = "alwayson_scripts"

_VERSION = 3  # of the extension's API
_UNITS = 16
# sd-webui-controlnet's modules, by their names and labels, lowercase
_MODULES: Mapping[str, Preprocessor] = {
    "none": "none",
    "canny": "canny",
    "lineart": "lineart",
    "lineart_standard": "lineart",
    "lineart_standard (from white bg & black line)": "lineart",
}
# the modules that see a picture for an IP-Adapter; which one that takes, its file says
_SEEING = ("ip-adapter-auto", "ip-adapter_clip_h", "ip-adapter_clip_g", "ip-adapter_clip_sd15", "ip-adapter_clip_sdxl",
           "ip-adapter_clip_sdxl_plus_vith")  # fmt: skip
# resize modes, by label and number
_FITS: Mapping[str, Fit] = {
    "just resize": "stretch",
    "0": "stretch",
    "crop and resize": "crop",
    "scale to fit (inner fit)": "crop",
    "inner_fit": "crop",
    "1": "crop",
    "resize and fill": "pad",
    "envelope (outer fit)": "pad",
    "outer_fit": "pad",
    "2": "pad",
}
# what a client may choose from, by the extension's labels
_TYPES = {
    "All": ["none", "canny", "lineart_standard", _SEEING[0]],
    "Canny": ["none", "canny"],
    "Lineart": ["none", "lineart_standard"],
    "IP-Adapter": [_SEEING[0]],
}
_BALANCED = ("balanced", "0")
_BOTH = ("both", "hiresfixoption.both", "0")
_HASH = re.compile(r" \[[0-9a-f]{4,64}\]$")


class A1111ControlNetUnit(BaseModel):
    """A unit, as far as it is read. processor_res, pixel_perfect and low_vram mean nothing here."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    enabled: bool = True
    image: str | dict[str, Any] | None = None
    input_image: str | None = Field(default=None, description="The same, as it was called.")
    mask: str | None = None
    effective_region_mask: str | None = Field(default=None, description="Where an IP-Adapter shows its picture.")
    module: str = "none"
    model: str = "None"
    weight: float = 1.0
    resize_mode: str | int = "Crop and Resize"
    threshold_a: float = Field(default=-1, description="Of canny; -1: 100.")
    threshold_b: float = Field(default=-1, description="Of canny; -1: 200.")
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    control_mode: str | int = "Balanced"
    guessmode: bool | None = None
    hr_option: str | int = "Both"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is chosen in it, as in the units that a page shows first."""
        return self.model.lower() == "none" and not self.image and not self.input_image

    @property
    def is_reference(self) -> bool:
        """Whether it shows a picture by an IP-Adapter."""
        return self.module.lower() in _SEEING

    def native(self, max_pixels: int) -> dict[str, Any]:
        """As one of the native request's controlnets or references. Raises InvalidRequest for what can't be done."""
        pictures = self.image if isinstance(self.image, dict) else {"image": self.image, "mask": self.mask}
        mask = self.mask or pictures.get("mask")
        if mask and not is_plain(SCRIPTS, str(mask), max_pixels):  # all black or all white is none, as there
            raise _unsupported("mask", "a mask")
        if self.guessmode or str(self.control_mode).lower() not in _BALANCED:
            raise _unsupported("control_mode", shown(self.control_mode))
        if str(self.hr_option).lower() not in _BOTH:
            raise _unsupported("hr_option", shown(self.hr_option))
        unit: dict[str, Any] = {
            "model": _HASH.sub("", self.model),
            "image": pictures.get("image") or self.input_image or None,
            "scale": self.weight,
            "start": self.guidance_start,
            "end": self.guidance_end,
        }
        if self.is_reference:
            return unit | {"mask": self.effective_region_mask or None}
        if self.effective_region_mask:
            raise _unsupported("effective_region_mask", "a mask of a ControlNet")
        unit |= {
            "preprocessor": _one_of(_MODULES, "module", self.module),
            "fit": _one_of(_FITS, "resize_mode", str(self.resize_mode)),
        }
        if unit["preprocessor"] == "canny":
            thresholds = (self.threshold_a, 100), (self.threshold_b, 200)
            given = sorted(round(value) if 0 <= value < 1 << 16 else own for value, own in thresholds)
            unit |= zip(("low", "high"), given, strict=True)  # OpenCV's Canny takes them in either order
        return unit


def units_of(units: object, max_pixels: int) -> dict[str, list[dict[str, Any]]]:
    """The native fields that the script's arguments ask for; `max_pixels` of a mask. Raises InvalidRequest."""
    fields: dict[str, list[dict[str, Any]]] = {"controlnets": [], "references": []}
    if units is None:
        return fields
    if not isinstance(units, list) or len(units) > _UNITS or not all(isinstance(unit, Mapping) for unit in units):
        raise InvalidRequest(f"{SCRIPTS}.{SCRIPT}.args must be a list of at most {_UNITS} units", SCRIPTS)
    asked = [validated(A1111ControlNetUnit, {k: v for k, v in unit.items() if v is not None}) for unit in units]
    for unit in asked:
        if unit.enabled and not unit.is_empty:
            fields["references" if unit.is_reference else "controlnets"].append(unit.native(max_pixels))
    return fields


routes = APIRouter(prefix="/controlnet", tags=["AUTOMATIC1111"], dependencies=[Depends(READ)])


@routes.get("/version")
async def version() -> dict[str, int]:
    """Of the extension's API."""
    return {"version": _VERSION}


@routes.get("/model_list")
async def model_list(service: CurrentService) -> dict[str, list[str]]:
    """The ControlNets and IP-Adapters that a unit may name."""
    return {"model_list": await asyncio.to_thread(_models, service)}


@routes.get("/module_list")
async def module_list() -> dict[str, Any]:
    """The preprocessors."""
    return {"module_list": [*_TYPES["All"], *_SEEING[1:]], "module_detail": {}}


@routes.get("/control_types")
async def control_types(service: CurrentService) -> dict[str, Any]:
    """The preprocessors and ControlNets by what they are for; what a ControlNet is for, its name alone says."""
    models = ["None", *await asyncio.to_thread(_models, service)]
    return {
        "control_types": {
            label: {
                "module_list": modules,
                "model_list": models,
                "default_option": modules[-1] if label != "All" else "none",
                "default_model": "None",
            }
            for label, modules in _TYPES.items()
        }
    }


@routes.get("/settings")
async def settings() -> dict[str, int]:
    """How many units a request may have."""
    return {"control_net_unit_count": MAX_CONTROLS}


def _models(service: Service) -> list[str]:
    return [*service.controlnets.names(), *service.ip_adapters.names()]


def _one_of(known: Mapping[str, Any], field: str, value: str) -> Any:
    if value.lower() not in known:
        raise _unsupported(field, shown(value))
    return known[value.lower()]


def _unsupported(field: str, value: str) -> InvalidRequest:
    return InvalidRequest(f"{SCRIPTS}.{SCRIPT}: {field} {value} isn't supported here", SCRIPTS)
