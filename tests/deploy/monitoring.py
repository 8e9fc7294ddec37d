"""What deploy/'s dashboard and alert rules ask of Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "darkroom.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"

_NAME = re.compile(r"\bray_[a-z_]+\b")


def dashboard() -> dict[str, Any]:
    """The dashboard's JSON."""
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def alerts() -> list[dict[str, Any]]:
    """The rules of all groups."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Every expression of both, and the queries of the dashboard's variables."""
    panels, variables = dashboard()["panels"], dashboard()["templating"]["list"]
    shown = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [*shown, *(variable["query"] for variable in variables), *(rule["expr"] for rule in alerts())]


def metric_names() -> frozenset[str]:
    """The names of all series that they name."""
    return frozenset(name for expression in expressions() for name in _NAME.findall(expression))
