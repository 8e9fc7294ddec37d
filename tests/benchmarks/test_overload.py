"""A phase of the overload is judged by its answers."""

import httpx
import pytest

from benchmarks.overload import Answered, load, phase
from benchmarks.service_requests import ImageRequest

LIKE = ImageRequest(prompt="", seed=0, steps=5, guidance_scale=5.0, width=256, height=256, sampler="euler")


def test_a_phase_of_images_and_honest_refusals_is_clean() -> None:
    answers = [*(Answered(200, seconds / 10) for seconds in range(1, 102)), Answered(503, 0.01, told=True)]
    found = phase("overload", answers, 12.5)
    assert found.statuses == {200: 101, 503: 1}
    assert (found.p50_s, found.p99_s, found.rss_mb) == (pytest.approx(5.1), pytest.approx(10.0), 12.5)
    assert found.clean


def test_what_else_comes_is_not() -> None:
    assert not phase("x", [Answered(500, 1.0)]).clean
    assert not phase("x", [Answered(0, 1.0)]).clean
    untold = phase("x", [Answered(503, 1.0)])
    assert (untold.untold, untold.clean, untold.p99_s) == (1, False, None)


async def test_a_load_asks_by_its_schedule_and_keeps_every_answer() -> None:
    asked = 0

    def answer(_request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise httpx.ConnectError("gone")
        return httpx.Response(200) if asked < 3 else httpx.Response(503, headers={"Retry-After": "4"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://darkroom") as http:
        answers = await load(http, LIKE, [0.0, 0.0, 0.01, 0.02], seed=1)
    assert [(one.status, one.told) for one in answers] == [(200, False), (200, False), (0, False), (503, True)]
