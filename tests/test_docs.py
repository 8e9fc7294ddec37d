"""The documentation names what there is: every call, field, error code and metric, with what the code says of them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from ray.serve import metrics

from deployments.metrics import ClassifierMetrics, EncoderMetrics, EngineMetrics, UpscalerMetrics
from serve_app.api.health import health_routes
from serve_app.api.native.job_view import Accepted, ImageView, JobList, JobView, Nsfw, ProgressView
from serve_app.api.native.routes import ModelList, ModelView, native_routes
from serve_app.config.settings import Settings
from serve_app.errors import STATUS
from serve_app.images.metadata import ControlnetRecord, ImageRecord, LoraRecord, Manifest, UpscaleManifest
from serve_app.observability.metrics import FrontMetrics
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import (
    ControlnetRequest,
    GenerationRequest,
    InpaintRequest,
    LoraRequest,
    OutpaintRequest,
    RefinerRequest,
)
from serve_app.schemas.upscale_request import UpscaleRequest
from tests.serve_app.conftest import catalogue
from tests.serve_app.front import front, stand_ins

ROOT = Path(__file__).parents[1]

TYPES = {metrics.Counter: "counter", metrics.Gauge: "gauge", metrics.Histogram: "histogram"}
# Serve's own, which every metric has
LABELS = {"application", "deployment", "replica"}


@cache
def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows(name: str) -> dict[str, list[str]]:
    """The rows of all tables by each name in their first cell."""
    found: dict[str, list[str]] = {}
    for line in text(name).splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split(" |")]
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1:])
    return found


def test_every_error_code_stands_with_its_status() -> None:
    table = rows("api.md")
    for cls, status in STATUS.items():
        assert cls.code in table, cls.code
        assert table[cls.code][0] == str(status), cls.code


@pytest.mark.parametrize("field", UpscaleRequest.model_fields)
def test_every_field_of_an_upscale_has_its_row(field: str) -> None:
    assert f"`{field}`" in text("api.md").partition("## POST /upscale")[2].partition("\n## ")[0]


@pytest.mark.parametrize("field", GenerationRequest.model_fields)
def test_every_field_of_a_request_has_its_row(field: str) -> None:
    assert field in rows("api.md")


@pytest.mark.parametrize(
    "model",
    [
        Accepted,
        JobView,
        JobList,
        ImageView,
        Nsfw,
        ProgressView,
        ModelList,
        ModelView,
        Manifest,
        UpscaleManifest,
        ImageRecord,
        LoraRecord,
        LoraRequest,
        ControlnetRecord,
        ControlnetRequest,
        RefinerRequest,
        InpaintRequest,
        OutpaintRequest,
    ],
)
def test_every_field_of_an_answer_is_shown(model: type[BaseModel]) -> None:
    shown = set(re.findall(r"[\"`]([a-z_0-9]+)[\"`]", text("api.md")))
    assert set(model.model_fields) <= shown


def test_the_limits_are_the_settings_own() -> None:
    limits = Settings.model_validate(catalogue()).limits
    table = rows("api.md")
    assert f"{limits.prompt_chars:,}" in table["prompt"][2]
    assert f"1 to {limits.max_n}" in table["n"][2]
    assert (table["timeout_s"][1], f"{limits.max_timeout_s:,.0f}" in table["timeout_s"][2]) == (
        f"{limits.default_timeout_s:g}",
        True,
    )
    assert f"at most {limits.max_wait_s:g} by default" in text("api.md")
    assert f"at most {limits.max_body_bytes >> 20} MiB, {limits.json_depth} levels deep" in text("api.md")
    assert f"at most {limits.max_image_body_bytes >> 20} MiB" in text("api.md")
    assert f"at most {limits.max_image_pixels:,} pixels" in text("api.md")


def instruments(holder: object) -> Iterator[Any]:
    for value in vars(holder).values():
        for one in value.values() if isinstance(value, dict) else [value]:
            if isinstance(one, tuple(TYPES)):
                yield one


@pytest.mark.parametrize("holder", [FrontMetrics, EngineMetrics, EncoderMetrics, ClassifierMetrics, UpscalerMetrics])
def test_every_metric_stands_with_its_type_and_labels(holder: type) -> None:
    table = rows("operations.md")
    found = list(instruments(holder()))
    assert found
    for one in found:
        name = one.info["name"]
        assert name in table, name
        kind, labels, meaning = table[name]
        assert kind == TYPES[type(one)], name
        assert set(re.findall(r"`(\w+)`", labels)) == set(one.info["tag_keys"]) - LABELS, name
        assert meaning


def test_no_metric_is_made_up() -> None:
    holders = (FrontMetrics, EngineMetrics, EncoderMetrics, ClassifierMetrics, UpscalerMetrics)
    names = {one.info["name"] for holder in holders for one in instruments(holder())}
    assert {name for name in rows("operations.md") if name.startswith("darkroom_")} == names


def test_every_section_of_the_settings_is_named() -> None:
    for field in Settings.model_fields:
        assert f"`{field}`" in text("operations.md") or f"`{field}.*`" in text("operations.md"), field


async def nothing() -> dict[str, Any]:
    return {}


async def test_every_native_call_has_its_section(tmp_path: Path) -> None:
    raw = {
        **catalogue(),
        "jobs": {"database_url": f"sqlite+aiosqlite:///{tmp_path}/jobs.db"},
        "images": {"url": str(tmp_path / "images")},
    }
    only_native = FastAPI()
    async with front(Settings.model_validate(raw), stand_ins()) as one:
        only_native.include_router(native_routes(one.service))
        only_native.include_router(health_routes(one.service.store, one.service.images, nothing))
    paths = only_native.openapi()["paths"]
    native = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert len(native) == 10
    headings = " ".join(line for line in text("api.md").splitlines() if line.startswith("## "))
    assert {call for call in native if call not in headings} == set()


def test_the_replay_in_the_documentation_asks_for_the_same_image() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", text("api.md"), re.DOTALL) if "replay" in block)
    names: dict[str, Any] = {"__name__": "documentation"}
    exec(code, names)  # noqa: S102  # what it does is what is tested
    settings = Settings.model_validate(catalogue())
    manifest = Manifest.model_validate(
        {
            "versions": {},
            "model": {"name": "demo-sdxl", "hash": "0"},
            "refiner": {"name": "demo-sdxl-refiner", "hash": "0", "switch_at": 0.7},
            "prompt": "a",
            "negative_prompt": "b",
            "seed": 5,
            "steps": 11,
            "guidance_scale": 3.5,
            "width": 256,
            "height": 192,
            "sampler": "unipc",
            "loras": [{"name": "a", "weight": 0.5, "hash": "0"}],
            "device": "cpu",
            "dtype": "float32",
            "reproducibility": "bucket:2",
            "safety": {"mode": "block", "action": "none"},
        }
    )
    asked = resolve(GenerationRequest.parse(names["replay"](manifest.model_dump())), settings, drawn_seed=1)
    for field in ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height", "sampler"):
        assert getattr(asked, field) == getattr(manifest, field), field
    assert [(lora.name, lora.weight) for lora in asked.loras] == [("a", 0.5)]
    assert (asked.model, asked.refiner, asked.switch_at) == ("demo-sdxl", "demo-sdxl-refiner", 0.7)
    assert asked.reproducible


def test_the_readme_links_them() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "(docs/api.md)" in readme
    assert "(docs/operations.md)" in readme
