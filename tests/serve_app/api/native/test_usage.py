"""GET /usage is the sum of the jobs, whatever became of them and whoever ran them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from serve_app.auth.key_file import Scope
from serve_app.config.settings import Settings
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.stand_in_stages import DECODE_S, STEP_S

JOBS, STEPS = 500, 10


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    raw_settings["jobs"] |= {
        "state_every": 1,
        "state_interval_s": 0.2,
        "lease_s": 0.5,
        "heartbeat_s": 0.1,
        "max_queued": JOBS,
        "max_queued_s": None,
        "max_attempts": 50,
    }
    raw_settings["access"] = {"requests": "100000/second", "generations": "100000/second"}
    return with_keys(
        raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ, ops=frozenset({Scope.ADMIN})
    )


@pytest.fixture
async def fronts(raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages) -> AsyncIterator[list[Front]]:
    settings = Settings.model_validate(raw_settings)
    async with AsyncExitStack() as both:
        yield [await both.enter_async_context(front(settings, stages, owner=name)) for name in ("one", "other")]


async def used(running: Front, key: str, **days: str) -> list[dict[str, Any]]:
    answer = await running.http.get("/usage", headers=bearer(key), params=days)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["usage"]
    return rows


async def all_jobs(running: Front) -> list[Job]:
    jobs = list((page := await running.service.store.page(tenant=None, limit=100)).jobs)
    while page.next_cursor is not None:
        page = await running.service.store.page(tenant=None, limit=100, cursor=page.next_cursor)
        jobs += page.jobs
    return jobs


async def accepted(running: Front, key: str, number: int, fate: str) -> str:
    """A job that draws, is cancelled or is taken from its router on its way; its id."""
    prompt = "a red circle" if fate == "draws" else "a slow red circle"
    body = {"prompt": prompt, "seed": number % 4, "steps": STEPS, "n": 1 + number % 2}
    headers = {**bearer(key), "prefer": f"wait={60 if fate == 'draws' else 0}"}
    answer = await running.http.post("/generate", json=body, headers=headers)
    assert answer.is_success, answer.text
    job_id: str = answer.json()["job_id"]
    if fate != "draws":
        await until(lambda: running.service.hub.latest(job_id) is not None, 60)
    if fate == "cancelled":
        await running.http.delete(f"/jobs/{job_id}", headers=bearer(key))
    elif fate == "killed":
        running.service.runner.drop([job_id])  # nothing is written any more
    return job_id


async def test_equals_the_sum_of_the_jobs(fronts: list[Front], keys: dict[str, str]) -> None:
    one, other = fronts
    fates = ["draws"] * 8 + ["cancelled", "killed"]
    at_once = asyncio.Semaphore(16)
    killed: list[str] = []

    async def send(number: int) -> None:
        fate = fates[number // 2 % len(fates)]
        async with at_once:
            job_id = await accepted(one, keys[("alice", "bob")[number % 2]], number, fate)
        if fate == "killed":
            killed.append(job_id)

    async with asyncio.TaskGroup() as group:
        for number in range(JOBS):
            group.create_task(send(number))
    async with asyncio.timeout(60):
        while (await other.service.store.depth()).running or (await other.service.store.depth()).queued:
            await other.maintenance.beat()
    jobs = await all_jobs(other)
    assert len(jobs) == JOBS
    states = {state: sum(job.state is state for job in jobs) for state in JobState}
    assert states[JobState.CANCELLED] > 0.9 * JOBS / 10
    assert sum(job.fence > 1 for job in jobs if job.id in killed) > 0.9 * JOBS / 10, "they had a second owner"
    drawn = [job for job in jobs if job.state in (JobState.COMPLETE, JobState.BLOCKED)]
    for job in drawn:  # once for each step, also where two routers drew it
        assert job.device_s == pytest.approx(job.request["n"] * (STEPS * STEP_S + DECODE_S))
    for tenant in ("alice", "bob"):
        rows = await used(one, keys[tenant])
        assert {row["tenant"] for row in rows} == {tenant}
        device_s = sum(job.device_s for job in jobs if job.tenant == tenant)
        assert sum(row["device_s"] for row in rows) == pytest.approx(device_s, rel=0.001)
        assert sum(row["images"] for row in rows) == sum(job.request["n"] for job in drawn if job.tenant == tenant)
    everything = await used(other, keys["ops"])
    assert {row["tenant"] for row in everything} == {"alice", "bob"}
    for job in jobs:
        assert await one.service.store.delete(job.id)
    assert await used(one, keys["ops"]) == everything, "it outlives the jobs"


async def test_refusals_are_their_tenant_s(fronts: list[Front], keys: dict[str, str]) -> None:
    one, other = fronts

    async def send(front: Front, key: str, **body: Any) -> int:
        answer = await front.http.post("/generate", json={"prompt": "x", **body}, headers=bearer(key))
        return answer.status_code

    assert await send(one, keys["alice"], model="nobody's") == 422
    assert await send(one, keys["alice"], steps=0) == 422
    assert await send(other, keys["alice"], steps=0) == 422
    assert await send(other, keys["bob"], steps=0) == 422
    assert await send(one, keys["bob"] + "x") == 401
    assert (await one.http.get(f"/result/{'0' * 32}", headers=bearer(keys["bob"]))).status_code == 404
    assert await send(one, keys["bob"], seed=2, steps=STEPS) == 202
    assert await used(one, keys["ops"]) == [], "nothing is written yet"
    for front_ in fronts:
        await front_.maintenance.beat()
        await front_.maintenance.beat()
    counted = {row["tenant"]: row["refusals"] for row in await used(one, keys["ops"])}
    assert counted == {"alice": 3, "bob": 1}


@pytest.mark.parametrize(
    "days", [{"since": "2026-11-02", "until": "2026-11-01"}, {"since": "2024-01-01", "until": "2026-01-01"}]
)
async def test_impossible_days_are_refused(fronts: list[Front], keys: dict[str, str], days: dict[str, str]) -> None:
    answer = await fronts[0].http.get("/usage", headers=bearer(keys["alice"]), params=days)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


async def test_the_days_are_those_asked_for(fronts: list[Front], keys: dict[str, str]) -> None:
    answer = await fronts[0].http.get("/usage", headers=bearer(keys["ops"]), params={"until": "0001-01-02"})
    assert answer.json() == {"since": "0001-01-01", "until": "0001-01-02", "usage": []}
