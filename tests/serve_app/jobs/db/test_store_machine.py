"""Any history of calls, from two stores on one database, is a legal one.

The machine keeps, beside the store, what each call must do according to the table in states.py: it knows nothing of
SQL. After every call each job is where its last call should have left it, and nowhere else.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from sqlalchemy import delete

from serve_app.errors import QueueFull, StaleLease, UnknownJob
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, JobProgress
from serve_app.jobs.states import TRANSITIONS, JobState
from tests.serve_app.clock import Clock

LEASE_S = 10.0
MAX_QUEUED = 4
MAX_ATTEMPTS = 2

which_store = st.integers(0, 1)
# the present fence, or one too old or too new
fence_error = st.sampled_from([0, 0, 0, 0, -1, 1])


class JobHistories(RuleBasedStateMachine):
    """Two stores, one database, jobs as they should be."""

    created = Bundle("created")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.clock = Clock()
        self.stores = [JobStore(url, self.clock), JobStore(url, self.clock)]
        self.loop = asyncio.Runner()
        for store in self.stores:
            self.run(store.open())
        self.run(self.empty())
        self.expected: dict[str, Job] = {}
        self.results: dict[str, int] = {}
        self.kept: set[str] = set()

    def teardown(self) -> None:
        for store in self.stores:
            self.run(store.close())
        self.loop.close()

    async def empty(self) -> None:
        """Forget what the history before this one has left."""
        await self.stores[0]._database.write(lambda connection: connection.execute(delete(jobs)).close())

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(call)

    def note(self, job: Job) -> None:
        """Take over what a call answered, having checked that it could follow what was."""
        before = self.expected[job.id]
        assert job.state is before.state or job.state in TRANSITIONS[before.state], (before.state, job.state)
        assert job.fence >= before.fence
        if before.state.terminal:
            assert job == before
        if job.state is JobState.RUNNING:
            assert job.owner is not None
            assert job.lease_until is not None
        else:
            assert (job.owner, job.lease_until) == (None, None)
        assert (job.finished_at is not None) == job.state.terminal
        assert not (job.state is JobState.QUEUED and job.cancel_requested)  # nobody would ever take it
        self.expected[job.id] = job

    def unfinished(self) -> list[Job]:
        return [job for job in self.expected.values() if not job.state.terminal]

    def abandoned(self, job: Job) -> bool:
        return job.state is JobState.RUNNING and job.lease_until is not None and job.lease_until < self.clock.now

    def claimable(self, job: Job) -> bool:
        free = job.state is JobState.QUEUED or (self.abandoned(job) and job.attempts < MAX_ATTEMPTS)
        return free and not job.cancel_requested

    @rule(target=created, store=which_store)
    def create(self, store: int) -> Any:
        call = self.stores[store].create({"prompt": "x"}, max_queued=MAX_QUEUED)
        if len(self.unfinished()) >= MAX_QUEUED:
            with pytest.raises(QueueFull):
                self.run(call)
            return multiple()
        job, _ = self.run(call)
        assert job.state is JobState.QUEUED
        self.expected[job.id] = job
        return job.id

    @rule(job_id=created, store=which_store)
    def claim(self, job_id: str, store: int) -> None:
        call = self.stores[store].claim(job_id, owner=f"s{store}", lease_s=LEASE_S, max_attempts=MAX_ATTEMPTS)
        job = self.run(call)
        before = self.expected.get(job_id)
        assert (job is not None) == (before is not None and self.claimable(before))
        if job is not None and before is not None:
            assert (job.fence, job.attempts) == (before.fence + 1, before.attempts + 1)
            self.note(job)

    @rule(
        job_id=created,
        store=which_store,
        error=fence_error,
        how=st.sampled_from(["complete", "block", "fail", "cancelled", "release"]),
    )
    def owner_writes(self, job_id: str, store: int, error: int, how: str) -> None:
        before = self.expected.get(job_id)
        fence = (before.fence if before else 1) + error
        target = self.stores[store]
        call = {
            "complete": lambda: target.complete(job_id, fence, {"images": []}),
            "block": lambda: target.block(job_id, fence, {"images": []}),
            "fail": lambda: target.fail(job_id, fence, code="x", message="x"),
            "cancelled": lambda: target.cancelled(job_id, fence),
            "release": lambda: target.release(job_id, fence),
        }[how]()
        if before is None or error or before.state is not JobState.RUNNING:
            with pytest.raises(StaleLease):
                self.run(call)
            return
        job = self.run(call)
        self.note(job)
        if job.state.terminal:
            self.results[job_id] = self.results.get(job_id, 0) + 1
            assert self.results[job_id] == 1

    @rule(job_id=created, store=which_store, error=fence_error)
    def progress(self, job_id: str, store: int, error: int) -> None:
        before = self.expected.get(job_id)
        fence = (before.fence if before else 1) + error
        held = self.run(self.stores[store].progress({job_id: fence}, {job_id: JobProgress(3, 9, 1)}))
        if before is None or error or before.state is not JobState.RUNNING:
            assert (held.kept, held.lost) == (set(), {job_id})
            return
        assert (held.kept, bool(held.cancel_requested)) == ({job_id}, before.cancel_requested)
        self.note(replace(before, step=3, steps=9, images_done=1))

    @rule(job_id=created, store=which_store, error=fence_error)
    def keep(self, job_id: str, store: int, error: int) -> None:
        before = self.expected.get(job_id)
        call = self.stores[store].keep(job_id, (before.fence if before else 1) + error, {(0, 0): b"half"})
        if before is None or error or before.state is not JobState.RUNNING:
            with pytest.raises(StaleLease):
                self.run(call)
            return
        self.run(call)
        self.kept.add(job_id)

    @rule(job_id=created, store=which_store)
    def look_at_what_is_kept(self, job_id: str, store: int) -> None:
        before = self.expected.get(job_id)
        unfinished = before is not None and not before.state.terminal
        kept = self.run(self.stores[store].kept(job_id))
        assert kept == ({(0, 0): b"half"} if unfinished and job_id in self.kept else {})

    @rule(job_id=created, store=which_store)
    def cancel(self, job_id: str, store: int) -> None:
        call = self.stores[store].cancel(job_id)
        before = self.expected.get(job_id)
        if before is None:
            with pytest.raises(UnknownJob):
                self.run(call)
            return
        job = self.run(call)
        if before.state is JobState.QUEUED:
            assert job.state is JobState.CANCELLED
        if before.state is JobState.RUNNING:
            assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
        self.note(job)

    @rule(store=which_store)
    def heartbeat(self, store: int) -> None:
        running = [job for job in self.expected.values() if job.state is JobState.RUNNING]
        beat = self.run(self.stores[store].heartbeat({job.id: job.fence for job in running}, lease_s=LEASE_S))
        assert beat.kept == {job.id for job in running}
        assert beat.cancel_requested == {job.id for job in running if job.cancel_requested}
        for job in running:
            self.note(self.run(self.stores[store].get(job.id)))

    @rule(seconds=st.sampled_from([1.0, LEASE_S + 1]))
    def wait(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @rule(store=which_store)
    def settle(self, store: int) -> None:
        due = {
            job.id
            for job in self.expected.values()
            if self.abandoned(job) and (job.cancel_requested or job.attempts >= MAX_ATTEMPTS)
        }
        ended = self.run(self.stores[store].settle_abandoned(MAX_ATTEMPTS))
        assert {job.id for job in ended} == due
        for job in ended:
            self.note(job)

    @rule(job_id=created, store=which_store)
    def delete(self, job_id: str, store: int) -> None:
        before = self.expected.get(job_id)
        gone = self.run(self.stores[store].delete(job_id))
        assert gone == (before is not None and before.state.terminal)
        if gone:
            del self.expected[job_id]

    @invariant()
    def the_store_holds_what_it_should(self) -> None:
        page = self.run(self.stores[0].page(tenant=None, limit=1000))
        assert {job.id: job for job in page.jobs} == self.expected
        assert len(self.unfinished()) <= MAX_QUEUED
        expired = {job.id for job in self.run(self.stores[1].expired())}
        assert expired == {job.id for job in self.expected.values() if self.abandoned(job)}


def test_job_histories(database_url: str) -> None:
    run_state_machine_as_test(
        lambda: JobHistories(database_url),
        settings=settings(max_examples=20, stateful_step_count=40),
    )
