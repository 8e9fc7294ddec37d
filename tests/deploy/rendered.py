"""deploy/rayservice.yaml is what Helm makes of deploy/chart.

`python -m tests.deploy.rendered > deploy/rayservice.yaml` writes it anew.
"""

from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "chart"
RELEASE = "darkroom"

# no valid name of an image, so that Kubernetes refuses it until it is filled in
_IMAGE = "FILL-IN/darkroom:0.1.0"
_HEAD = f"""# Darkroom on Kubernetes, by KubeRay: what `helm template {RELEASE} deploy/chart` makes.
#
# docs/cluster.md says what it needs first. Fill in the image (deploy/Dockerfile, in your registry) before
# `kubectl apply -f deploy/rayservice.yaml`:
#   sed -i 's|{_IMAGE}|YOUR/IMAGE:TAG|' deploy/rayservice.yaml
# For other values use the chart. Written by: python -m tests.deploy.rendered
"""


def rendered(image: str = _IMAGE, **values: Any) -> str:
    """All manifests of the chart as one YAML stream."""
    with helm_python.Chart.load(CHART) as chart:
        manifests = chart.render({"image": image, **values}, name=RELEASE, namespace="default")
    parts = [text.strip() for name, text in sorted(manifests.items()) if name.endswith(".yaml")]
    return _HEAD + "".join(f"---\n{text}\n" for text in parts if text)


def resources(**values: Any) -> list[dict[str, Any]]:
    """The same, read."""
    return list(yaml.safe_load_all(rendered(**values)))


if __name__ == "__main__":
    print(rendered(), end="")  # noqa: T201
