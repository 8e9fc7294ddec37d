"""Loads against small services whose timing is known: what is counted is what happened."""

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.http_clients import Answer
from benchmarks.load import closed_loop, open_loop, overtake, timed
from benchmarks.service_requests import ImageRequest, requests

STEP_S = 0.002
LIKE = ImageRequest(prompt="", seed=0, steps=5, guidance_scale=5.0, width=256, height=256, sampler="euler")


class OneByOne:
    """A service that does one request after the other and takes at most `places` at once."""

    def __init__(self, places: int = 1000) -> None:
        self._turn = asyncio.Lock()
        self._places = places
        self.inside = self.most_inside = 0

    async def generate(self, request: ImageRequest) -> Answer:
        if self.inside >= self._places:
            return Answer("refused", reason="full")
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        async with self._turn:
            await asyncio.sleep(request.steps * STEP_S)
        self.inside -= 1
        return Answer("done", b"image")


class SideBySide:
    """A service in which nobody waits for anybody."""

    async def generate(self, request: ImageRequest) -> Answer:
        await asyncio.sleep(request.steps * STEP_S)
        return Answer("done", b"image")


@pytest.fixture
def asked() -> Iterator[ImageRequest]:
    return requests(LIKE, seed=1)


async def test_a_closed_loop_keeps_its_concurrency_and_its_least(asked: Iterator[ImageRequest]) -> None:
    service = OneByOne()
    served = await closed_loop(service, asked, 3, seconds=0, least=9)
    assert service.most_inside == 3
    assert 9 <= len(served) <= 11
    assert all(one.fate == "done" for one in served)
    # with two others before it, a request takes three turns
    assert sorted(one.latency for one in served)[len(served) // 2] >= 2.5 * LIKE.steps * STEP_S


async def test_an_open_loop_asks_by_its_schedule_and_counts_from_it(asked: Iterator[ImageRequest]) -> None:
    service = OneByOne(places=3)
    served = await open_loop(service, asked, [0.0] * 5)
    assert [one.asked for one in served] == [0.0] * 5
    assert sorted(one.fate for one in served) == ["done"] * 3 + ["refused"] * 2
    done = sorted(one.latency for one in served if one.fate == "done")
    assert done[2] >= 3 * LIKE.steps * STEP_S
    assert {one.reason for one in served if one.fate == "refused"} == {"full"}


async def test_overtaking_shows_who_waits_for_whom(asked: Iterator[ImageRequest]) -> None:
    queued = await overtake(OneByOne(), asked, long_steps=200, short_steps=5, long_jobs=2)
    free = await overtake(SideBySide(), asked, long_steps=200, short_steps=5, long_jobs=2)
    assert len(queued.long_s) == len(free.long_s) == 2
    assert queued.short_s > 0.3
    assert free.short_s < queued.short_s / 3


async def test_overtaking_without_an_image_is_an_error(asked: Iterator[ImageRequest]) -> None:
    with pytest.raises(RuntimeError, match="refused full"):
        await overtake(OneByOne(places=0), asked, long_steps=1, short_steps=1, long_jobs=1)


def test_requests_differ_in_prompt_and_seed(asked: Iterator[ImageRequest]) -> None:
    some = [next(asked) for _ in range(500)]
    assert len({one.prompt for one in some}) == len({one.seed for one in some}) == 500
    assert {(one.steps, one.width) for one in some} == {(5, 256)}
    assert [one.prompt for one in some[:5]] == [one.prompt for one, _ in zip(requests(LIKE, 1), range(5), strict=False)]


async def test_what_the_safety_layers_withheld_was_drawn(asked: Iterator[ImageRequest]) -> None:
    class Strict:
        async def generate(self, request: ImageRequest) -> Answer:
            return Answer("blocked")

    assert await timed(Strict(), next(asked)) >= 0.0


async def test_nothing_drawn_has_no_time(asked: Iterator[ImageRequest]) -> None:
    with pytest.raises(RuntimeError, match="full"):
        await timed(OneByOne(places=0), next(asked))
