"""The dashboard and the alert rules name metrics that exist; tests/e2e/test_metrics.py asks a running service."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.serve import metrics

from deployments.metrics import ClassifierMetrics, EncoderMetrics, EngineMetrics, UpscalerMetrics
from serve_app.observability.metrics import FrontMetrics
from tests.deploy.monitoring import ALERTS, alerts, dashboard, expressions, metric_names

ROWS = ["Work waiting", "Batch fullness", "Step time", "ETA error", "Replicas", "Swaps", "Refusals", "Failures"]
SUFFIXES = {metrics.Counter: ("_total",), metrics.Gauge: ("",), metrics.Histogram: ("_bucket", "_sum", "_count")}


def exported() -> Iterator[str]:
    """The series of our own metrics, as Ray names them for Prometheus."""
    for holder in (FrontMetrics(), EngineMetrics(), EncoderMetrics(), ClassifierMetrics(), UpscalerMetrics()):
        for value in vars(holder).values():
            for metric in value.values() if isinstance(value, dict) else [value]:
                for suffix in SUFFIXES.get(type(metric), ()):
                    yield f"ray_{metric.info['name']}{suffix}"


def test_names_only_metrics_that_exist() -> None:
    ours = {name for name in metric_names() if name.startswith("ray_darkroom_")}
    assert len(ours) > 15
    assert ours - set(exported()) == set()
    assert metric_names() - ours == {"ray_serve_autoscaling_target_replicas", "ray_serve_deployment_replica_healthy"}


def test_the_dashboard_has_its_rows() -> None:
    panels = dashboard()["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    assert all(panel["targets"] for panel in panels if panel["type"] != "row")
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:  # Grafana has 24 columns
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_every_alert_says_what_it_means() -> None:
    assert len({rule["alert"] for rule in alerts()}) == len(alerts()) > 0
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool isn't installed (Debian's prometheus)")
    return found


def test_prometheus_takes_the_rules(promtool: str) -> None:
    checked = subprocess.run([promtool, "check", "rules", ALERTS], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout


def test_prometheus_understands_the_dashboard(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"shown:{number}", "expr": expression.replace("$application", ".+")}
        for number, expression in enumerate(expressions())
        if not expression.startswith(("label_values(", "prometheus"))
    ]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
