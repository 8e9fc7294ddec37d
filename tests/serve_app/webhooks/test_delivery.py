"""Webhooks from a request to their receiver, a real server; on both kinds of database, and over the end of a router."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from serve_app.config.settings import Settings
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import utc_now
from serve_app.observability.metrics import FrontMetrics
from serve_app.stages.client import Stages
from serve_app.webhooks.delivery import WebhookDelivery, webhook_body
from tests.serve_app.front import Front, front, until
from tests.serve_app.webhooks.conftest import SECRET
from tests.serve_app.webhooks.receiver import Receiver, status

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("caller.py")


async def delivered(delivery: WebhookDelivery) -> int:
    """How many calls were due; they are made."""
    begun = await delivery.begin_due()
    await asyncio.gather(*begun)
    return len(begun)


@pytest.fixture
async def later(running: Front) -> AsyncIterator[WebhookDelivery]:
    """Another router's, for whom it is an hour later: every lease and every pause is over."""
    service = running.service
    store = JobStore(service.settings.jobs.database_url, clock=lambda: utc_now() + timedelta(hours=1))
    await store.open()
    delivery = WebhookDelivery(
        service.settings.webhooks,
        store=store,
        metrics=FrontMetrics(),
        body_of=lambda job, root: webhook_body(job, service.runner, root),
    )
    yield delivery
    await delivery.stop()
    await store.close()


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    jobs = settings.jobs.model_copy(update={"database_url": database_url})
    return settings.model_copy(update={"jobs": jobs})


async def test_a_receiver_is_told_once_of_a_job_s_end_and_can_tell_by_whom(running: Front, receiver: Receiver) -> None:
    job = (await running.generate("slow", wait=None, webhook_url=receiver.url, seed=2, steps=10)).json()
    assert await delivered(running.webhooks) == 0  # it hasn't ended
    await running.service.wait(await running.service.store.get(job["job_id"]), 20)
    assert await delivered(running.webhooks) == 1
    assert await delivered(running.webhooks) == 0
    [call] = receiver.calls
    assert call.line == "POST /hook?token=of-mine HTTP/1.1"
    assert (call.headers["host"], call.headers["content-type"]) == (receiver.host, "application/json")
    assert call.headers["webhook-id"] == job["job_id"]
    told = Webhook(SECRET).verify(call.body, dict(call.headers))  # the standard's own package
    assert told["type"] == "job.complete"
    assert told["data"] == (await running.http.get(f"/result/{job['job_id']}")).json()
    assert "token" not in call.body.decode()
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(call.body.replace(b"complete", b"cancelled"), dict(call.headers))


async def test_every_end_is_told(running: Front, receiver: Receiver) -> None:
    for prompt, seed, expected in (("poison", 2, "failed"), ("x", 3, "blocked"), ("endless", 2, "cancelled")):
        job = (await running.generate(prompt, wait=None, webhook_url=receiver.url, seed=seed)).json()
        if expected == "cancelled":
            await running.http.delete(job["links"]["cancel"])
        await running.service.wait(await running.service.store.get(job["job_id"]), 20)
        await delivered(running.webhooks)
        assert receiver.calls[-1].json["type"] == f"job.{expected}"
        assert receiver.calls[-1].json["data"]["job_id"] == job["job_id"]


async def test_what_is_not_taken_comes_again_and_is_given_up_in_the_end(
    running: Front, receiver: Receiver, later: WebhookDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [status(500), status(302, f"Location: http://{receiver.host}/elsewhere"), status(404)]
    assert (await running.generate(webhook_url=receiver.url, seed=2)).json()["status"] == "complete"
    assert await delivered(running.webhooks) == 1
    assert await delivered(running.webhooks) == 0, "there is a pause"
    assert [await delivered(later) for _ in range(2)] == [1, 0]
    assert [call.line.split()[1] for call in receiver.calls] == ["/hook?token=of-mine"] * 2, "no redirect is followed"
    later._store.outbox._clock = lambda: utc_now() + timedelta(hours=9)
    assert [await delivered(later) for _ in range(2)] == [1, 0]
    later._store.outbox._clock = lambda: utc_now() + timedelta(days=9)
    assert await delivered(later) == 0, "three attempts and no more"
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 1
    for call in receiver.calls:
        Webhook(SECRET).verify(call.body, dict(call.headers))
    assert "webhook given up" in caplog.text
    assert "of-mine" not in caplog.text, "an address may hold a secret"


async def test_a_receiver_that_is_gone_is_called_no_more(
    running: Front, receiver: Receiver, later: WebhookDelivery
) -> None:
    receiver.answers = [status(410)]
    await running.generate(webhook_url=receiver.url, seed=2)
    assert [await delivered(running.webhooks), await delivered(later)] == [1, 0]


async def test_two_routers_make_one_call(
    running: Front, receiver: Receiver, settings: Settings, stages: Stages
) -> None:
    async with front(settings, stages, owner="other") as other:
        for seed in range(2, 22, 2):
            await running.generate(webhook_url=receiver.url, seed=seed)
        begun = await asyncio.gather(*(one.webhooks.begin_due() for one in (running, other) for _ in range(4)))
        await asyncio.gather(*(task for tasks in begun for task in tasks))
    assert sorted(call.headers["webhook-id"] for call in receiver.calls) == sorted(
        job.id for job in (await running.service.store.page(tenant=None, limit=20)).jobs
    )


async def test_a_killed_router_s_call_is_made_again(running: Front, receiver: Receiver, later: WebhookDelivery) -> None:
    receiver.answers = [b"", status(204)]
    job = (await running.generate(webhook_url=receiver.url, seed=2)).json()
    told = json.dumps(running.service.settings.model_dump(mode="json"))
    caller = await asyncio.create_subprocess_exec(
        sys.executable, SCRIPT, told, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    async with asyncio.timeout(60):
        await receiver.came.wait()
    caller.send_signal(signal.SIGKILL)
    await caller.wait()
    assert await delivered(running.webhooks) == 0, "its claim holds for a while"
    assert await delivered(later) == 1
    assert [call.headers["webhook-id"] for call in receiver.calls] == [job["job_id"]] * 2
    assert await delivered(later) == 0


async def test_a_router_delivers_by_itself_and_hands_over_when_it_ends(
    running: Front, receiver: Receiver, later: WebhookDelivery
) -> None:
    receiver.answers = [status(204), b"", status(204)]
    await running.webhooks.start()
    for seed in (2, 4):
        receiver.came.clear()
        await running.generate(webhook_url=receiver.url, seed=seed)
        async with asyncio.timeout(10):
            await receiver.came.wait()
    running.webhooks.check()
    await running.webhooks.stop()
    assert await delivered(later) == 1
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 2


async def test_an_outage_of_the_database_is_waited_out(settings: Settings) -> None:
    tries = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = JobStore(f"postgresql+asyncpg://darkroom@127.0.0.1:{port}/jobs?ssl=disable")
        often = settings.webhooks.model_copy(update={"poll_s": 0.01})
        delivery = WebhookDelivery(often, store=store, metrics=FrontMetrics(), body_of=lambda job, root: b"{}")
        await delivery.start()
        await until(lambda: tries > 2)
        delivery.check()
        await delivery.stop()
        await store.close()


async def test_a_forgotten_job_s_webhook_is_forgotten(
    running: Front, receiver: Receiver, later: WebhookDelivery
) -> None:
    job = (await running.generate(webhook_url=receiver.url, seed=2)).json()
    assert await running.service.store.delete(job["job_id"])
    assert await delivered(later) == 0


async def test_a_request_that_comes_again_is_told_of_once(running: Front, receiver: Receiver) -> None:
    body: dict[str, Any] = {"prompt": "x", "seed": 2, "webhook_url": receiver.url}
    named = {"idempotency-key": "one", "prefer": "wait=30"}
    for _ in range(2):
        assert (await running.http.post("/generate", json=body, headers=named)).status_code == 200
    assert [await delivered(running.webhooks) for _ in range(2)] == [1, 0]
    other = await running.http.post("/generate", json=body | {"webhook_url": receiver.url + "2"}, headers=named)
    assert other.json()["error"]["code"] == "idempotency_mismatch"
