"""A configuration with an overlay: what it says is taken, all else stays; the shipped overlay changes no claim."""

from pathlib import Path

import pytest
import yaml

from serve_app.config.check import ConfigError, check_config
from serve_app.config.overlay import merged
from serve_app.config.settings import Settings

ROOT = Path(__file__).parents[3]
_CLUSTER = ROOT / "serve_config.cluster.yaml"
_LAPTOP = ROOT / "overlay.laptop.yaml"


def _written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_what_an_overlay_names_is_replaced_and_all_else_stays(tmp_path: Path) -> None:
    base = _written(tmp_path, "base.yaml", "{a: {b: 1, c: [1, 2]}, applications: [{name: x, args: {d: 1, e: 2}}]}")
    over = _written(tmp_path, "over.yaml", "{a: {c: [3]}, applications: [{args: {e: null, f: {g: 1}}}]}")
    again = _written(tmp_path, "again.yaml", "{a: {b: {h: 1}}}")
    assert yaml.safe_load(merged(base, over, again)) == {
        "a": {"b": {"h": 1}, "c": [3]},
        "applications": [{"name": "x", "args": {"d": 1, "e": None, "f": {"g": 1}}}],
    }


@pytest.mark.parametrize("text", ["- a\n", "", "a: b: c\n"])
def test_a_file_that_has_no_keys(tmp_path: Path, text: str) -> None:
    path = _written(tmp_path, "over.yaml", text)
    with pytest.raises(ConfigError, match=r"over\.yaml: (expected keys and values|invalid YAML)"):
        merged(_CLUSTER, path)


def test_the_laptop_has_the_clusters_graph(tmp_path: Path) -> None:
    laptop = _settings(_written(tmp_path, "laptop.yaml", merged(_CLUSTER, _LAPTOP)))
    cluster = _settings(_CLUSTER)
    assert laptop.device == "cpu-with-claims"
    assert all(model.source.startswith("package:demo_models/") for model in laptop.models.values())
    assert {name: model.family for name, model in laptop.models.items()} == {
        name: model.family for name, model in cluster.models.items()
    }
    for stage in type(cluster.stages).model_fields:
        shipped, here = getattr(cluster.stages, stage), getattr(laptop.stages, stage)
        assert here.model_dump(exclude={"engine", "device"}) == shipped.model_dump(exclude={"engine", "device"}), stage


def _settings(path: Path) -> Settings:
    return check_config(path).applications[0].args
