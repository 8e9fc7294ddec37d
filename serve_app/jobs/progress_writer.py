"""Writes progress and snapshots of the running jobs to the store.

No job depends on it: without snapshots its images are drawn from the beginning.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping

from serve_app.config.settings import JobsSettings
from serve_app.errors import StaleLease, StoreUnavailable
from serve_app.jobs.attempt import Attempt, Stop
from serve_app.jobs.db.store import JobStore
from serve_app.observability.logs import get_logger

log = get_logger(__name__)


class ProgressWriter:
    """Writes for the attempts of one process; ends those whose jobs are another's by now, or cancelled."""

    def __init__(self, settings: JobsSettings, store: JobStore, attempts: Mapping[str, Attempt]) -> None:
        """`attempts` by job id; the mapping changes while jobs come and go."""
        self._settings = settings
        self._store = store
        self._attempts = attempts
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def moved(self, attempt: Attempt) -> None:
        """Write the attempt's progress and snapshots within their intervals."""
        self._begin("progress", self._settings.progress_interval_s, self._save_progress)
        if self._settings.state_max_bytes and attempt.snapshots.unsaved():
            self._begin("snapshots", self._settings.state_interval_s, self._keep_all)

    async def keep(self, attempt: Attempt, fence: int) -> None:
        """Store a job's snapshots. Raises StaleLease; outages of the database are only logged."""
        parts = attempt.snapshots.unsaved()
        packed = await asyncio.to_thread(attempt.snapshots.pack, parts, self._settings.state_max_bytes)
        try:
            if packed:
                await self._store.keep(attempt.job.id, fence, packed)
        except StoreUnavailable as error:
            log.warning("snapshots weren't stored", cause=repr(error.__cause__))
            return
        attempt.snapshots.saved(parts, packed)

    async def stop(self) -> None:
        """Stop writing."""
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, what: str, interval_s: float, write: Callable[[], Awaitable[bool]]) -> None:
        if what not in self._tasks:
            repeated = self._repeat(what, interval_s, write)
            self._tasks[what] = asyncio.create_task(repeated, context=contextvars.Context())

    async def _repeat(self, what: str, interval_s: float, write: Callable[[], Awaitable[bool]]) -> None:
        """Write at intervals, until there is nothing to write."""
        try:
            while True:
                await asyncio.sleep(interval_s)
                if not await write():
                    return
        except Exception:
            log.exception("a write beside the jobs failed for a reason that is a bug", what=what)
        finally:
            del self._tasks[what]

    async def _save_progress(self) -> bool:
        """Store the progress of all jobs, for readers in other processes; end those that are lost or cancelled."""
        fences = {job_id: one.fence for job_id, one in self._attempts.items() if one.unsaved and one.fence is not None}
        attempts = {job_id: self._attempts[job_id] for job_id in fences}
        for attempt in attempts.values():
            attempt.unsaved = False
        if not fences:
            return False
        try:
            held = await self._store.progress(fences, {job_id: one.progress for job_id, one in attempts.items()})
        except StoreUnavailable as error:
            log.warning("progress wasn't stored", cause=repr(error.__cause__))
            return True
        for job_id, attempt in attempts.items():
            if job_id in held.lost:
                attempt.end(Stop.LOST)
            elif job_id in held.cancel_requested:
                attempt.end(Stop.CANCEL)
        return True

    async def _keep_all(self) -> bool:
        """Store the snapshots of all jobs, for their next owner."""
        moved = [(one, one.fence) for one in self._attempts.values() if one.snapshots.unsaved()]
        for attempt, fence in moved:
            if fence is None or attempt.job.id not in self._attempts:
                continue
            try:
                await self.keep(attempt, fence)
            except StaleLease:
                attempt.end(Stop.LOST)
        return bool(moved)
