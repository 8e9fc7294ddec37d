"""A running service exports every metric that the dashboard and the alert rules name."""

import asyncio
import re
import time

import httpx
import pytest
import ray

from tests.deploy.monitoring import metric_names
from tests.e2e.service import Service

pytestmark = pytest.mark.ray

_SERIES = re.compile(r"^(\w+)\{", re.MULTILINE)


async def exported() -> set[str]:
    """The names of the series that Ray's agents export."""
    names: set[str] = set()
    async with httpx.AsyncClient(timeout=30) as agents:
        for node in ray.nodes():
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            names |= set(_SERIES.findall((await agents.get(address)).raise_for_status().text))
    return names


async def test_what_the_dashboard_shows_is_exported(service: Service) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=300) as http:

        async def draw(status: int, **body: object) -> None:
            request = {"prompt": "a red circle", "model": "tiny-sd15", "seed": 3, **body}
            answer = await http.post("/generate", json=request, headers={"prefer": "wait=240"})
            assert answer.status_code == status, answer.text

        await draw(200, n=3)  # six rows fill no bucket
        await draw(200, model="tiny-sd15-variant")
        await draw(200)  # its time can be foreseen
        await draw(422, model="nobody's")
        await draw(200, steps=50, n=8, width=256, height=256, timeout_s=0.5)  # it fails
    until = time.monotonic() + 120
    while (missing := metric_names() - await exported()) and time.monotonic() < until:  # noqa: ASYNC110  # no event
        await asyncio.sleep(1)  # agents export what they were told a while ago
    assert not missing
