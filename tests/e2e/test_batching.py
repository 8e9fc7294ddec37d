"""What concurrent HTTP requests share: encoder batches and denoising steps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from ray import serve

from tests.e2e.service import Service

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=32)
    with httpx.Client(base_url=service.url, timeout=200, limits=limits) as client:
        yield client


def generate_all(client: httpx.Client, bodies: list[dict[str, Any]]) -> None:
    """All at once; each ends well."""

    def generate(body: dict[str, Any]) -> None:
        answer = client.post("/generate", json=body, headers={"Prefer": "wait=150"})
        assert (answer.status_code, answer.json().get("status")) == (200, "complete"), answer.text

    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(generate, bodies))


def test_each_text_is_encoded_once(client: httpx.Client, service: Service) -> None:
    """And with others.

    In how few batches depends on how closely a busy machine lets the requests follow each other.
    tests/deployments/test_text_encoder.py has the number for requests that are really there at once.
    """
    encoder = serve.get_deployment_handle("TextEncoder", service.app)
    bodies = [{"prompt": f"cat number {number}", "steps": 1, "safety": "flag"} for number in range(16)]
    before = encoder.stats.remote().result()
    generate_all(client, bodies)
    between = encoder.stats.remote().result()
    generate_all(client, bodies)
    after = encoder.stats.remote().result()
    assert between.texts - before.texts == 16
    assert between.batches - before.batches <= 8
    assert after.batches == between.batches


def test_concurrent_images_share_steps(client: httpx.Client, service: Service) -> None:
    stage = serve.get_deployment_handle("SD15", service.app)
    before = stage.stats.remote().result()
    generate_all(client, [{"prompt": "a cat", "seed": seed, "steps": 20, "safety": "flag"} for seed in range(8)])
    after = stage.stats.remote().result()
    assert after.lane_steps_total - before.lane_steps_total == 8 * 20
    assert after.steps_total - before.steps_total < 8 * 20 / 2


def test_a_swapped_in_variant_is_what_ready_shows(client: httpx.Client) -> None:
    generate_all(client, [{"prompt": "a cat", "model": "tiny-sd15-variant", "safety": "flag"}])
    assert "tiny-sd15-variant" in str(client.get("/ready").json()["stages"]["SD15"])
