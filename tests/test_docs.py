"""The documentation names what there is: every call, field, error code, metric and setting.

What it names is there: links, files, modules, commands and their options.
"""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from ray.serve import metrics
from typer.core import TyperGroup

from deployments.metrics import ClassifierMetrics, EncoderMetrics, EngineMetrics, UpscalerMetrics
from serve_app.api import health
from serve_app.api.http_status import STATUS
from serve_app.api.native import admin, batches, usage, verify, weights
from serve_app.api.native import routes as native
from serve_app.api.native.admin import AdminModelList, AdminModelView, AliasView, ChangeList, ChangeView, IdleEntryView
from serve_app.api.native.batches import AxisView, BatchDetails, BatchList, CellView
from serve_app.api.native.job_view import Accepted, ImageView, JobList, JobView, Nsfw, ProgressView
from serve_app.api.native.routes import ModelList, ModelView
from serve_app.api.native.usage import UsageList, UsageView
from serve_app.api.native.verify import VerifiedImage
from serve_app.api.native.weights import WeightFileView, WeightList
from serve_app.cli.app import app
from serve_app.config.check import ServeFile
from serve_app.config.settings import Settings
from serve_app.observability.metrics import FrontMetrics
from serve_app.planning.resolve import resolve
from serve_app.provenance.reading import Credentials
from serve_app.schemas.batch_request import BatchAxis, BatchRequest
from serve_app.schemas.generation_request import (
    BoxRequest,
    ControlnetRequest,
    DetailRequest,
    GenerationRequest,
    InpaintRequest,
    LoraRequest,
    OutpaintRequest,
    RefinerRequest,
    RegionRequest,
)
from serve_app.schemas.manifest import (
    ControlnetRecord,
    DetailRecord,
    DetectionRecord,
    ImageRecord,
    LoraRecord,
    Manifest,
    PartRecord,
    RegionRecord,
    UpscaleManifest,
)
from serve_app.schemas.upscale_request import UpscaleRequest
from serve_app.schemas.validation import validated
from tests.configuration_page import configuration_page
from tests.serve_app.conftest import catalogue

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
        BatchRequest,
        BatchAxis,
        BatchDetails,
        BatchList,
        CellView,
        AxisView,
        AdminModelList,
        AdminModelView,
        AliasView,
        IdleEntryView,
        ChangeList,
        ChangeView,
        WeightList,
        WeightFileView,
        UsageList,
        UsageView,
        VerifiedImage,
        Credentials,
        Manifest,
        UpscaleManifest,
        ImageRecord,
        LoraRecord,
        LoraRequest,
        ControlnetRecord,
        ControlnetRequest,
        RegionRecord,
        RegionRequest,
        BoxRequest,
        DetailRecord,
        DetailRequest,
        PartRecord,
        DetectionRecord,
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
    prose = " ".join(text("api.md").split())
    assert f"{limits.prompt_chars:,}" in table["prompt"][2]
    assert f"1 to {limits.max_n}" in table["n"][2]
    assert (table["timeout_s"][1], f"{limits.max_timeout_s:,.0f}" in table["timeout_s"][2]) == (
        f"{limits.default_timeout_s:g}",
        True,
    )
    assert f"at most {limits.max_wait_s:g} by default" in prose
    assert f"at most {limits.max_body_bytes >> 20} MiB" in prose
    assert f"at most {limits.max_image_body_bytes >> 20} MiB" in prose
    assert f"at most {limits.max_image_pixels:,} pixels" in prose


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
        assert set(labels.replace("`", "").replace(",", "").split()) == set(one.info["tag_keys"]) - LABELS, name
        assert meaning


def test_no_metric_is_made_up() -> None:
    holders = (FrontMetrics, EngineMetrics, EncoderMetrics, ClassifierMetrics, UpscalerMetrics)
    names = {one.info["name"] for holder in holders for one in instruments(holder())}
    assert {name for name in rows("operations.md") if name.startswith("darkroom_")} == names


def test_every_span_of_a_trace_is_named() -> None:
    source = "".join(path.read_text() for path in (ROOT / "serve_app").rglob("*.py"))
    spans = set(re.findall(r"""(?:traces\.|_tracer\.start_as_current_|_tracer\.start_)span\(\s*"(\w+)\"""", source))
    for durations in re.findall(r"traces\.past\(\{(.*?)\}", source):
        spans |= set(re.findall(r'"(\w+)":', durations))
    assert len(spans) > 10
    [listed] = re.findall(r"^- Spans: (.*?)^- ", text("operations.md"), re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == spans


def test_every_section_of_the_settings_is_named() -> None:
    for field in Settings.model_fields:
        assert f"`{field}`" in text("operations.md") or f"`{field}.*`" in text("operations.md"), field


def test_every_native_call_has_its_section() -> None:
    routers = (native.routes, batches.routes, usage.routes, verify.routes, admin.routes, weights.routes, health.routes)
    only_native = FastAPI(routes=[route for router in routers for route in router.routes])
    paths = only_native.openapi()["paths"]
    calls = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert len(calls) == 29
    headings = " ".join(line for line in text("api.md").splitlines() if line.startswith("## "))
    assert {call for call in calls if call not in headings} == set()


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
            "regions": [
                {
                    "prompt": "c",
                    "box": {"x": 0.0, "y": 0.5, "width": 1.0, "height": 0.5},
                    "weight": 2.0,
                    "loras": [{"name": "b", "weight": 0.25, "hash": "0"}],
                }
            ],
            "base_weight": 0.4,
            "freeu_b1": 1.25,
            "freeu_s2": 0.5,
            "vae": {"name": "soft", "hash": "0"},
            "device": "cpu",
            "dtype": "float32",
            "reproducibility": "bucket:2",
            "safety": {"mode": "block", "action": "none"},
        }
    )
    asked = resolve(
        validated(GenerationRequest, names["replay"](manifest.model_dump())), settings, drawn_seed=1
    ).generation
    for field in ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height", "sampler"):
        assert getattr(asked, field) == getattr(manifest, field), field
    assert [(lora.name, lora.weight) for lora in asked.loras] == [("a", 0.5)]
    hashes = {"loras": {"__all__": {"hash"}}}
    recorded = [region.model_dump(exclude=hashes) for region in manifest.regions]
    assert [region.model_dump() for region in asked.regions] == recorded
    assert asked.base_weight == 0.4
    assert (asked.freeu, asked.vae) == (manifest.freeu, "soft")
    assert (asked.model, asked.refiner, asked.switch_at) == ("demo-sdxl", "demo-sdxl-refiner", 0.7)
    assert asked.reproducible


# what is told of the past may name what has gone
HISTORY = [ROOT / "CHANGELOG.md", ROOT / "docs" / "decisions.md"]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")} - {*HISTORY})
LONGEST_CELL = 120
FOLDERS = ("serve_app/", "deployments/", "benchmarks/", "demo_models/", "tests/", "docs/")


def names_of(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)", prose, re.MULTILINE)]
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def code(page: Path) -> list[str]:
    """All that stands in backquotes, and the lines of blocks of shell commands."""
    blocks = re.findall(r"^```(?:sh)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return lines + [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]


@pytest.mark.parametrize("name", names_of([*PAGES, *HISTORY]))
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", page.read_text())
    for link in {one or other for one, other in links}:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", names_of(PAGES))
def test_every_file_that_is_named_exists(name: str) -> None:
    for word in {word.rstrip(".,;:") for text in code(ROOT / name) for word in text.split()}:
        path = word.partition("::")[0].partition("#")[0]
        if (path.startswith(FOLDERS) and not set(path) & set("*{<…")) or re.fullmatch(
            r"(serve_config|cluster)[\w.]*\.yaml|Makefile|constraints\.txt", path
        ):
            assert (ROOT / path).exists(), path


def options(command: Any) -> set[str]:
    return {"--help", *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))}


def check_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    while words and (re.fullmatch(r"\w+=\S*", words[0])):
        words = words[1:]
    if not words:
        return
    flags = [re.split(r"[=)]", word)[0] for word in words if re.match(r"--[a-z]", word)]
    if words[0].rpartition("/")[2] == "darkroom":
        command: Any = typer.main.get_command(app)
        for word in words[1:]:
            if not isinstance(command, TyperGroup):
                break
            assert word in command.commands or word.startswith("-"), line
            command = command.commands.get(word, command)
        if command.name != "bench":  # (its options are the benchmark's)
            assert set(flags) <= options(command), line
    elif words[0].rpartition("/")[2] in ("python", "python3") and words[1:2] == ["-m"]:
        module = words[2]
        assert find_spec(module) is not None, line
        if (spec := find_spec(f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module)) is None:
            return
        if spec.origin is not None and Path(spec.origin).is_relative_to(ROOT) and ".venv" not in spec.origin:
            source = Path(spec.origin).read_text()
            for flag in flags:
                assert f'"{flag}"' in source or f"{flag[2:].replace('-', '_')}:" in source, (flag, line)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), line


@pytest.mark.parametrize("name", names_of(PAGES))
def test_every_command_and_its_options_exist(name: str) -> None:
    for text in code(ROOT / name):
        for line in re.split(r"\s[|;]\s|&&", text):
            if re.match(r"\s*(\w+=\S+ )*(\S*/)?(darkroom|python3?|make) ", line) and "…" not in line:
                check_command(line)


@pytest.mark.parametrize("name", names_of(PAGES))
def test_no_cell_of_a_table_is_longer_than_a_line(name: str) -> None:
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("|"):
            cells = [re.sub(r"\]\([^)]*\)", "]", cell).strip() for cell in re.split(r"(?<!\\)\|", line)]
            assert all(len(cell) <= LONGEST_CELL for cell in cells), line


def test_the_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES:
        if page.name not in ("README.md",):
            assert f"({page.relative_to(ROOT)})" in readme, page.name
    assert "(docs/decisions.md)" in readme


def test_every_decision_stands_in_the_index() -> None:
    index, *entries = text("decisions.md").partition("## Index")[2].split("\n## ")
    titles = [entry.partition("\n")[0] for entry in entries]
    assert [title for title in titles if f"[{title.partition(': ')[2]}](#" not in index] == []


def test_the_configuration_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration_page(), (
        "the settings have changed: python -m tests.configuration_page > docs/configuration.md"
    )


def test_every_setting_has_a_meaning() -> None:
    silent = [line for line in configuration_page().splitlines() if re.fullmatch(r"- `\w+` \(.*\):\s*", line)]
    assert silent == []


def merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return base | {key: merged(base[key], one) if key in base else one for key, one in change.items()}
    if isinstance(base, list) and isinstance(change, list) and len(base) == len(change) == 1:
        return [merged(base[0], change[0])]
    return change


@pytest.mark.parametrize(
    "page", ["configuration.md", "models.md", "operations.md", "own-checkpoint.md", "../README.md"]
)
def test_every_example_of_a_configuration_is_valid(page: str) -> None:
    model = {"family": "sd15", "source": "owner/name"}
    arguments = {"default_model": "mine", "models": {"mine": model}, "loras": {"folder": "loras"}}
    application = {"name": "darkroom", "import_path": "serve_app.app:build", "args": arguments}
    least = {"http_options": {"host": "127.0.0.1"}, "applications": [application]}
    blocks = re.findall(r"^```yaml\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        problems = problems_of(merged(least, yaml.safe_load(block)))
        # every key of a section stands in the page of settings, also two of which a file has one
        assert [one for one in problems if page != "configuration.md" or one["type"] != "value_error"] == [], block


def problems_of(content: Any) -> list[Any]:
    try:
        ServeFile.model_validate(content)
    except ValidationError as error:
        return list(error.errors())
    return []
