"""Writes to the store, beside the work on jobs, how far they are and where their half-drawn images are.

Nothing is lost if it never comes to it: a job is then drawn from its beginning.
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
    """For the attempts of one process; ends those whose jobs others own by now, or that nobody wants."""

    def __init__(self, settings: JobsSettings, store: JobStore, attempts: Mapping[str, Attempt]) -> None:
        """attempts: by their job's id, as they come and go."""
        self._settings = settings
        self._store = store
        self._attempts = attempts
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def moved(self, attempt: Attempt) -> None:
        """It took a step: to be written within its interval."""
        self._begin("progress", self._settings.progress_interval_s, self._save_progress)
        if self._settings.state_max_bytes and attempt.snapshots.unsaved():
            self._begin("snapshots", self._settings.state_interval_s, self._keep_all)

    async def keep(self, attempt: Attempt, fence: int) -> None:
        """Write where a job's images are. Raises StaleLease; the database's outages are only logged."""
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
        """Write no more."""
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
        """Write now and then, while there is something to write."""
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
        """Write how far all jobs are, for those who ask another process; see which are still wanted and still ours."""
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
        """Keep where the images of all jobs are, for whoever adopts them."""
        moved = [(one, one.fence) for one in self._attempts.values() if one.snapshots.unsaved()]
        for attempt, fence in moved:
            if fence is None or attempt.job.id not in self._attempts:
                continue
            try:
                await self.keep(attempt, fence)
            except StaleLease:
                attempt.end(Stop.LOST)
        return bool(moved)
