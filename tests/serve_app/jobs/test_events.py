"""Watchers get what is new, never an ever-growing queue of it, and always the end."""

import asyncio
from datetime import UTC, datetime

import numpy as np

from serve_app.jobs.events import EventHub
from serve_app.jobs.job import Job, JobProgress
from serve_app.jobs.states import JobState

JOB_ID = "0" * 32


def job(state: JobState = JobState.COMPLETE) -> Job:
    now = datetime.now(UTC)
    return Job(JOB_ID, "", state, {}, None, None, None, 0, 0, 0, now, None, now, None, 1, None, 1, False)


def preview(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


async def test_a_slow_watcher_gets_the_latest() -> None:
    hub = EventHub()
    hub.open(JOB_ID)
    with hub.watch(JOB_ID) as watch:
        for step in range(1, 1000):
            hub.progress(JOB_ID, JobProgress(step, 1000, 0), {step % 2: preview(step % 256)})
        news = await watch.next(1)
        assert news is not None
        assert news.progress == JobProgress(999, 1000, 0)
        assert sorted(news.previews) == [0, 1]
        assert await watch.next(0.01) is None


async def test_a_late_watcher_starts_with_where_the_job_is() -> None:
    hub = EventHub()
    hub.open(JOB_ID)
    hub.progress(JOB_ID, JobProgress(3, 10, 0), {0: preview(7)})
    with hub.watch(JOB_ID) as watch:
        news = await watch.next(1)
        assert news is not None
        assert (news.progress, news.previews[0].max()) == (JobProgress(3, 10, 0), 7)


async def test_every_watcher_gets_the_end() -> None:
    hub = EventHub()
    with hub.watch(JOB_ID) as one, hub.watch(JOB_ID) as other:
        hub.open(JOB_ID)
        waiting = asyncio.create_task(one.end(5))
        hub.progress(JOB_ID, JobProgress(1, 2, 0), {})
        hub.end(job())
        assert await waiting == await other.end(5) == job_ended(await other.end(5))


def job_ended(ended: Job | None) -> Job:
    assert ended is not None
    assert ended.state is JobState.COMPLETE
    return ended


async def test_an_end_that_does_not_come_is_not_waited_for() -> None:
    hub = EventHub()
    hub.open(JOB_ID)
    with hub.watch(JOB_ID) as watch:
        hub.progress(JOB_ID, JobProgress(1, 2, 0), {})
        assert await watch.end(0.05) is None


async def test_steps_add_up_in_a_pause_which_the_end_does_not_wait_for() -> None:
    hub = EventHub()
    hub.open(JOB_ID)
    with hub.watch(JOB_ID) as watch:
        hub.progress(JOB_ID, JobProgress(1, 9, 0), {})
        pausing = asyncio.create_task(watch.next(60, pause_s=0.05))
        await asyncio.sleep(0)
        hub.progress(JOB_ID, JobProgress(2, 9, 0), {})
        news = await pausing
        assert news is not None
        assert news.progress == JobProgress(2, 9, 0)
        waiting = asyncio.create_task(watch.next(60, pause_s=60))
        await asyncio.sleep(0)
        hub.end(job())
        async with asyncio.timeout(10):
            news = await waiting
        assert news is not None
        assert news.ended == job_ended(news.ended)


async def test_a_watcher_is_woken_when_the_job_leaves() -> None:
    hub = EventHub()
    hub.open(JOB_ID)
    with hub.watch(JOB_ID) as watch:
        hub.leave(JOB_ID)
        news = await watch.next(10)
        assert news is not None
        assert (news.progress, news.ended) == (None, None)


async def test_nothing_is_kept_of_jobs_that_ended() -> None:
    hub = EventHub()
    hub.open(JOB_ID)
    with hub.watch(JOB_ID):
        hub.progress(JOB_ID, JobProgress(1, 2, 0), {})
        hub.end(job())
    assert hub.latest(JOB_ID) is None
    assert not hub._watches
    assert not hub._latest
