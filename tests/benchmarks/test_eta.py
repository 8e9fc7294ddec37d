"""The figures of the estimates' benchmark are those of the answers that it got."""

import httpx
import pytest

from benchmarks.eta import Estimate, figures, measure
from benchmarks.service_requests import ImageRequest, requests

LIKE = ImageRequest(prompt="", seed=0, steps=5, guidance_scale=5.0, width=256, height=256, sampler="euler")


def test_errors_are_relative_to_what_happened() -> None:
    estimates = [
        Estimate(0.0, 1, None, 9.0),  # warming up
        Estimate(10.0, 1, 2.0, 4.0),
        Estimate(11.0, 2, 5.0, 4.0),
        Estimate(12.0, 3, 4.4, 4.0),
        Estimate(13.0, 3, None, 4.0),
    ]
    found = figures(estimates, refused=2, failed=1, warm_up_s=5.0)
    assert (found.jobs, found.without, found.refused, found.failed) == (4, 1, 2, 1)
    assert found.median_error == pytest.approx(0.25)
    assert found.median_bias == pytest.approx(0.1)
    assert found.p90_error is not None
    assert found.p90_error >= 0.5
    assert found.median_took_s == 4.0


def test_without_an_estimate_there_is_no_error() -> None:
    found = figures([], refused=3, failed=0, warm_up_s=0.0)
    assert (found.jobs, found.median_error, found.p90_error, found.median_took_s) == (0, None, None, None)


async def test_each_answer_is_counted_as_what_it_is() -> None:
    """A service that takes two jobs, of which one fails, and refuses the others."""
    taken = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal taken
        if request.method == "GET":
            number = int(request.url.path[-1])
            status = "complete" if number == 1 else "failed"
            return httpx.Response(200, json={"status": status, "timings": {"total_s": 2.0}})
        taken += 1
        if taken > 2:
            return httpx.Response((429, 503)[taken % 2], json={})
        links = {"result": f"/result/{taken}"}
        return httpx.Response(202, json={"position": taken, "eta_seconds": 1.5, "links": links})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://darkroom") as http:
        found, estimates = await measure(http, requests(LIKE, 1), None, [0.0, 0.0, 0.01, 0.02], warm_up_s=0.0)
    assert [(one.position, one.eta, one.took) for one in estimates] == [(1, 1.5, 2.0)]
    assert (found.refused, found.failed, found.median_error) == (2, 1, 0.25)
