"""kill -9 of what is no stage: the router that owns the jobs, Serve's controller, its HTTP proxy; and last words.

The same at random and for long: `make chaos`.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator

import psutil
import pytest

from tests.chaos.client import StubbornClient
from tests.e2e.service import Service
from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.ray

ASKED = {"prompt": "a red circle", "steps": 20, "width": 128, "height": 128, "seed": 3, "reproducible": True}


@pytest.fixture
async def client(service: Service) -> AsyncIterator[StubbornClient]:
    stubborn = StubbornClient(service.url, patience_s=120)
    yield stubborn
    await stubborn.ready(90)  # for whoever comes next
    await stubborn.http.aclose()


def processes(title: str) -> list[psutil.Process]:
    """Of this session's own cluster: descendants of this process."""
    titled = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            titled += [one] if " ".join(one.cmdline()).startswith(title) else []
    return titled


async def process(title: str) -> psutil.Process:
    """The one with this title, once a predecessor that Serve is still stopping has ended."""
    async with asyncio.timeout(60):
        while len(titled := processes(title)) != 1:  # noqa: ASYNC110  # of other processes
            await asyncio.sleep(0.1)
    return titled[0]


async def under_way(client: StubbornClient) -> None:
    async with asyncio.timeout(60):
        while not any(job["status"] == "running" for job in await client.jobs()):  # noqa: ASYNC110  # over HTTP
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "titles", [("ray::ServeReplica:darkroom:Router",), ("ray::ServeController", "ray::ProxyActor")], ids=" ".join
)
async def test_jobs_outlive_whoever_is_killed_and_are_drawn_once(
    client: StubbornClient, titles: tuple[str, ...]
) -> None:
    expected = await client.job(ASKED, f"undisturbed {titles}")
    jobs = [asyncio.create_task(client.job(ASKED, f"{titles} {number}")) for number in range(6)]
    await under_way(client)  # at least one of them, and none can be done
    for victim in [await process(title) for title in titles]:
        victim.kill()
    told = await asyncio.gather(*jobs)
    assert [one.status for one in told] == ["complete"] * 6
    assert {one.pictures for one in told} == {expected.pictures}
    assert len({one.job_id for one in told}) == 6
    known = {job["job_id"] for job in await client.jobs()}
    assert known >= {one.job_id for one in told}


async def test_a_batch_is_answered_line_by_line_whoever_is_killed(client: StubbornClient) -> None:
    prompt = "a red circle, of a batch that is disturbed"
    body = {"prompt": prompt, "size": "128x128", "steps": 10, "response_format": "url"}
    lines = [
        {"custom_id": str(seed), "method": "POST", "url": "/v1/images/generations", "body": {**body, "seed": seed}}
        for seed in range(30)
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    file = await client.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", text)})
    asked = {
        "input_file_id": file.raise_for_status().json()["id"],
        "endpoint": "/v1/images/generations",
        "completion_window": "24h",
    }
    batch = (await client.http.post("/v1/batches", json=asked)).raise_for_status().json()
    for title in ("ray::ServeReplica:darkroom:Router", "ray::ServeReplica:darkroom:SD15"):
        await under_way(client)
        (await process(title)).kill()
    async with asyncio.timeout(300):
        while (seen := await client.json(f"/v1/batches/{batch['id']}"))["status"] != "completed":  # noqa: ASYNC110  # HTTP
            await asyncio.sleep(0.1)
    assert seen["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    output = (await client.good(f"/v1/files/{seen['output_file_id']}/content")).text
    answers = [json.loads(one) for one in output.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [line["custom_id"] for line in lines]
    drawn = {answer["response"]["body"]["id"] for answer in answers}
    assert drawn == {job["job_id"] for job in await client.jobs() if job["request"]["prompt"] == prompt}
    assert len(drawn) == 30


async def test_what_ray_writes_of_the_dead_names_no_prompt(client: StubbornClient, ray_serve: RayCluster) -> None:
    job = asyncio.create_task(client.job({**ASKED, "prompt": "a red circle, SENTINEL-PROMPT"}, "aborted"))
    await under_way(client)
    for title in ("ray::ServeReplica:darkroom:SD15", "ray::ServeReplica:darkroom:Router"):
        (await process(title)).send_signal(signal.SIGABRT)
    assert (await job).status == "complete"
    written = [path.read_bytes() for path in ray_serve.logs.rglob("*") if path.is_file()]
    assert sum(b"SIGABRT" in one for one in written) >= 2  # they had the time to say something
    assert not [one for one in written if b"SENTINEL" in one]
