"""Who is let in, and who is told to come again when: work in device seconds, quotas, priorities, an overload."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, stand_ins, until
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.stand_in_stages import DECODE_S, STEP_S

# of an image of 25 steps at 256 x 256
WORK_S = 25 * STEP_S + DECODE_S


def pace_of(one: Front) -> float:
    """Device seconds a second that its SD1.5 stage did of late; few on a slow machine, as a stand-in only claims."""
    return one.service.runner._forecast._paces["sd15"].rate


@pytest.fixture
async def known(raw_settings: dict[str, Any], stages: Stages) -> AsyncIterator[Front]:
    """A front that has drawn an image, and takes 20 images' work at most."""
    raw_settings["jobs"]["max_queued_s"] = 20.5 * WORK_S
    async with front(Settings.model_validate(raw_settings), stages) as one:
        assert (await one.generate(seed=2)).status_code == 200
        yield one


@pytest.fixture
def saved(running: Front, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Device seconds that the front counts as saved, by reason."""
    counted: Counter[str] = Counter()

    def inc(value: float, tags: dict[str, str]) -> None:
        counted[tags["reason"]] += value  # type: ignore[assignment]

    monkeypatch.setattr(running.service.metrics._saved, "inc", inc)
    return counted


async def test_before_anything_was_drawn_nobody_knows(running: Front) -> None:
    body = (await running.generate("endless", wait=None)).json()
    assert body["eta_seconds"] is None
    assert (await running.newest()).work_s is None


async def test_every_202_says_where_it_stands_and_when_it_will_be_done(known: Front) -> None:
    forecast = known.service.runner._forecast
    around_s = forecast._head.value + forecast._tail.value
    bodies = [(await known.generate("endless", wait=None, n=n)).json() for n in (1, 2, 1)]
    assert bodies[0]["position"] == 1
    etas = [body["eta_seconds"] for body in bodies]
    assert etas[0] == pytest.approx(WORK_S + around_s, abs=0.011)
    assert etas[2] >= 3.5 * WORK_S, "what came before it, and its own"
    assert (await known.newest()).work_s == pytest.approx(WORK_S)


async def test_what_a_job_took_is_in_its_timings_and_its_row(known: Front) -> None:
    body = (await known.generate(seed=2, n=2)).json()
    assert body["timings"]["device_s"] == pytest.approx(2 * WORK_S)
    assert (await known.newest()).device_s == pytest.approx(2 * WORK_S)


async def test_work_that_would_be_too_much_is_refused_until_some_is_done(known: Front) -> None:
    first = (await known.generate("endless", wait=None, n=10)).json()
    assert (await known.generate("endless", wait=None, n=10)).status_code == 202
    rate_before = pace_of(known)
    refused = await known.generate("endless", wait=None, n=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
    # 22 images are 1.5 more than it takes
    waits_s = [math.ceil(1.5 * WORK_S / rate) for rate in (rate_before, pace_of(known))]
    assert min(waits_s) <= int(refused.headers["retry-after"]) <= max(waits_s)
    await known.http.delete(f"/jobs/{first['job_id']}")
    assert (await known.generate("endless", wait=None, n=2)).status_code == 202


async def test_what_could_only_start_too_late_is_refused_at_once(raw_settings: dict[str, Any], stages: Stages) -> None:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        await one.generate(seed=2)
        for _ in range(5):
            await one.generate("endless", wait=None, n=10)
        rate_before = pace_of(one)
        refused = await one.generate("endless", wait=None, timeout_s=0.5)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "starts_too_late")
        # 50 images, of which a step or none is taken, less half a second
        waits_s = [
            50 * work_s / rate - 0.5 for work_s in (WORK_S - STEP_S, WORK_S) for rate in (rate_before, pace_of(one))
        ]
        assert math.floor(min(waits_s)) <= int(refused.headers["retry-after"]) <= math.ceil(max(waits_s))
        assert (await one.generate("endless", wait=None, timeout_s=60)).status_code == 202
        urgent = await one.generate("endless", wait=None, timeout_s=0.5, priority="interactive")
        assert urgent.status_code == 202, "nothing of its class is before it"


async def test_a_tenant_with_much_work_is_refused_and_another_is_not(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path
) -> None:
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    raw_settings["jobs"]["max_queued_s_per_tenant"] = 5 * WORK_S
    async with front(Settings.model_validate(raw_settings), stages) as one:

        async def ask(owner: str, prompt: str, wait: int = 0, **fields: Any) -> httpx.Response:
            headers = {**bearer(keys[owner]), "prefer": f"wait={wait}"}
            return await one.http.post("/generate", json={"prompt": prompt, "seed": 2, **fields}, headers=headers)

        assert (await ask("alice", "a circle", 30)).status_code == 200
        assert (await ask("alice", "endless", n=4)).status_code == 202
        refused = await ask("alice", "endless", n=4)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tenant_queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await ask("bob", "endless", n=4)).status_code == 202


async def test_a_quota_of_device_seconds_outlives_the_router(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path
) -> None:
    raw_settings["access"] = {"gpu_seconds": "1/hour"}
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    settings = Settings.model_validate(raw_settings)

    async def ask(one: Front, owner: str, **fields: Any) -> httpx.Response:
        headers = {**bearer(keys[owner]), "prefer": "wait=30"}
        return await one.http.post("/generate", json={"prompt": "a circle", "seed": 2, **fields}, headers=headers)

    async with front(settings, stages) as one:
        assert (await ask(one, "alice", n=9)).status_code == 200  # 0.99 of 1 s
        refused = await ask(one, "alice")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
        assert 3_500 <= int(refused.headers["retry-after"]) <= 3_600
        assert (await ask(one, "bob")).status_code == 200
        never = await ask(one, "bob", n=10)
        assert (never.status_code, never.json()["error"]["code"]) == (422, "invalid_request")
    async with front(settings, stages, owner="router-2") as other:
        assert (await ask(other, "alice")).status_code == 200, "it knows no price yet, and 0.01 s are left"
        assert (await ask(other, "alice")).status_code == 429


async def test_the_priority_of_a_request_is_its_lanes(raw_settings: dict[str, Any]) -> None:
    stages = stand_ins()
    async with front(Settings.model_validate(raw_settings), stages) as one:
        for priority in ("batch", "normal", "interactive"):
            assert (await one.generate(seed=2, priority=priority)).status_code == 200
    lanes = await stages.denoisers["sd15"].lanes_asked.remote()
    assert [lane.priority.name.lower() for lane in lanes] == ["batch", "normal", "interactive"]


async def test_a_tenant_s_lanes_are_its_own(raw_settings: dict[str, Any], tmp_path: Path) -> None:
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ)
    stages = stand_ins()
    async with front(Settings.model_validate(raw_settings), stages) as one:
        headers = {**bearer(keys["alice"]), "prefer": "wait=30"}
        await one.http.post("/generate", json={"prompt": "a circle", "seed": 2}, headers=headers)
    [lane] = await stages.denoisers["sd15"].lanes_asked.remote()
    assert lane.tenant == "alice"


async def has_left(stages: Stages, stage: str, lanes: int) -> None:
    """Wait until so many endless lanes were taken out of the stage."""
    async with asyncio.timeout(10):
        while len(await stages.denoisers[stage].lanes_left.remote()) < lanes:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)


async def test_what_a_cancel_saves_is_counted(running: Front, saved: Counter[str]) -> None:
    await running.generate(seed=2)
    body = (await running.generate("endless", wait=None, n=2)).json()
    await until(lambda: running.service.hub.latest(body["job_id"]) is not None)
    await running.http.delete(f"/jobs/{body['job_id']}")
    assert saved == {"cancelled": pytest.approx(2 * WORK_S, rel=0.1)}


async def test_what_a_waiting_client_saves_by_leaving_is_counted(running: Front, saved: Counter[str]) -> None:
    await running.generate(seed=2)
    await running.goes_with_its_client(
        running.http.post("/v1/images/generations", json={"prompt": "endless", "size": "256x256"})
    )
    assert saved == {"cancelled": pytest.approx(WORK_S, rel=0.1)}


@pytest.mark.parametrize(("model", "stage"), [("demo-sd15", "sd15"), ("demo-sdxl", "sdxl_base")])
async def test_at_the_deadline_the_lanes_leave_and_the_rest_is_saved(
    running: Front, stages: Stages, saved: Counter[str], model: str, stage: str
) -> None:
    await running.generate(seed=2, model=model)
    before = len(await stages.denoisers[stage].lanes_left.remote())
    body = (await running.generate("endless", model=model, timeout_s=1, n=2)).json()
    assert body["error"]["code"] == "deadline_exceeded"
    await has_left(stages, stage, before + 2)
    assert set(saved) == {"deadline_exceeded"}
    assert saved["deadline_exceeded"] > WORK_S


async def test_ten_times_too_much_is_refused_and_leaves_nothing_behind(
    raw_settings: dict[str, Any], stages: Stages
) -> None:
    """Ten times what fits, all dialects: only 202, 200, 429 and 503 come back, what is kept is bounded, and it ends."""
    raw_settings["jobs"]["max_queued"] = 10
    raw_settings["safety"] = {"mode": "off"}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        service, runner = one.service, one.service.runner
        calls = [
            ("/generate", {"prompt": "slow"}),
            ("/v1/images/generations", {"prompt": "slow", "size": "256x256"}),
            ("/sdapi/v1/txt2img", {"prompt": "slow", "width": 256, "height": 256}),
            ("/predict", {"inputs": "slow"}),
        ]
        most_here = most_stored = 0

        async def ask(number: int) -> httpx.Response:
            nonlocal most_here, most_stored
            path, body = calls[number % len(calls)]
            response = await one.http.post(path, json=body)
            most_here = max(most_here, sum(runner.depth()), len(service.hub._latest))
            depth = await service.store.depth()
            most_stored = max(most_stored, depth.queued + depth.running)
            return response

        answers = await asyncio.gather(*(ask(number) for number in range(100)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 202, 429, 503}
        assert statuses[503] >= 50
        assert statuses[200] + statuses[202] >= 10
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
        assert most_here <= 10
        assert most_stored <= 10

        await until(lambda: runner.depth() == (0, 0), 30)
        accepted = (await service.store.page(tenant=None, limit=100)).jobs
        assert len(accepted) == statuses[200] + statuses[202]
        assert {job.state for job in accepted} == {JobState.COMPLETE}
        assert (len(service.hub._latest), len(service.hub._watches), len(runner._tasks)) == (0, 0, 0)
        assert runner._forecast._busy() == set()
        assert (await one.generate(seed=2)).status_code == 200
