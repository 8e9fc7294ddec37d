"""Who may ask for which route: one table, and what isn't in it doesn't exist.

A route of the application that is missing here is answered with 404, whoever asks (a test walks over all of them). The
paths are written as the routes write them; nothing here knows what they do.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.routing import compile_path

from serve_app.auth.keys import Scope


class Access(enum.Enum):
    """What a route asks for, where keys are on. LINK: a key that may read, or a signed link (image_links.py)."""

    PUBLIC = enum.auto()
    LINK = enum.auto()
    READ = enum.auto()
    GENERATE = enum.auto()

    @property
    def scope(self) -> Scope | None:
        """The scope that a key needs; None where no key is needed."""
        if self is Access.PUBLIC:
            return None
        return Scope.GENERATE if self is Access.GENERATE else Scope.READ


_PUBLIC, _LINK, _READ, _GENERATE = Access

_A1111_LISTS = (
    "sd-models", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae", "loras", "embeddings",
    "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "scripts", "script-info", "cmd-flags",
    "memory",
)  # fmt: skip

ROUTES: Final[Mapping[tuple[str, str], Access]] = {
    ("GET", "/"): _PUBLIC,  # the playground, which shows nothing without a key
    ("GET", "/ui/{name}"): _PUBLIC,
    ("GET", "/health"): _PUBLIC,
    ("GET", "/ready"): _PUBLIC,  # tells its details only to keys that may read
    ("GET", "/docs"): _PUBLIC,
    ("GET", "/docs-files/{path:path}"): _PUBLIC,
    ("GET", "/openapi.json"): _PUBLIC,
    ("POST", "/generate"): _GENERATE,
    ("POST", "/upscale"): _GENERATE,
    ("GET", "/result/{job_id}"): _READ,
    ("GET", "/jobs"): _READ,
    ("DELETE", "/jobs/{job_id}"): _GENERATE,
    ("GET", "/jobs/{job_id}/events"): _READ,
    ("GET", "/images/{name}"): _LINK,
    ("GET", "/models"): _READ,
    ("POST", "/v1/images/generations"): _GENERATE,
    ("POST", "/v1/images/edits"): _GENERATE,
    ("POST", "/v1/images/variations"): _GENERATE,
    ("GET", "/v1/models"): _READ,
    ("GET", "/v1/models/{model_id}"): _READ,
    ("POST", "/sdapi/v1/txt2img"): _GENERATE,
    ("POST", "/sdapi/v1/img2img"): _GENERATE,
    ("GET", "/sdapi/v1/progress"): _READ,
    ("POST", "/sdapi/v1/interrupt"): _GENERATE,
    ("POST", "/sdapi/v1/skip"): _GENERATE,
    ("GET", "/sdapi/v1/options"): _READ,
    ("POST", "/sdapi/v1/options"): _GENERATE,
    ("POST", "/sdapi/v1/png-info"): _READ,
    ("POST", "/sdapi/v1/extra-single-image"): _GENERATE,
    ("POST", "/sdapi/v1/extra-batch-images"): _GENERATE,
    ("POST", "/sdapi/v1/refresh-checkpoints"): _READ,
    ("POST", "/sdapi/v1/refresh-loras"): _READ,
    **{("GET", f"/sdapi/v1/{name}"): _READ for name in _A1111_LISTS},
    **{("GET", f"/controlnet/{name}"): _READ for name in ("version", "model_list", "module_list")},
    ("POST", "/internal/progress"): _READ,
    ("GET", "/internal/pending-tasks"): _READ,
    ("POST", "/models/{model_id:path}"): _GENERATE,
    ("POST", "/predict"): _GENERATE,
}

# of Access.GENERATE those that ask for images, or for work on them, which are limited by themselves
GENERATIONS: Final = frozenset(
    {
        "/generate",
        "/upscale",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
        "/sdapi/v1/extra-single-image",
        "/sdapi/v1/extra-batch-images",
        "/models/{model_id:path}",
        "/predict",
    }
)

# whose bodies may hold images
WITH_IMAGES: Final = frozenset(
    {
        "/generate",
        "/upscale",
        "/v1/images/edits",
        "/v1/images/variations",
        "/sdapi/v1/txt2img",  # for ControlNets
        "/sdapi/v1/img2img",
        "/sdapi/v1/png-info",
        "/sdapi/v1/extra-single-image",
        "/sdapi/v1/extra-batch-images",
        "/models/{model_id:path}",
        "/predict",
    }
)


@dataclass(frozen=True, slots=True)
class Found:
    """A route of the table. path: as the table writes it. parts: of the request's path, by name."""

    path: str
    access: Access
    parts: Mapping[str, str]


_PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {path: compile_path(path)[0] for _, path in ROUTES}


def find_route(method: str, path: str) -> Found | tuple[str, ...]:
    """The route, or the methods that the path knows instead: none for a path that isn't in the table."""
    methods: list[str] = []
    for (known, template), access in ROUTES.items():
        match = _PATTERNS[template].match(path)
        if match is None:
            continue
        if known == method:
            return Found(template, access, match.groupdict())
        methods.append(known)
    return tuple(methods)
