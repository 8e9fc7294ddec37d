"""Writes to the store, beside the work on jobs, how far they are and where their half-drawn images are.

Nothing is lost if it never comes to it: a job is then drawn from its beginning. Knows no stages.
"""

import asyncio
import contextvars
from collections.abc import Mapping, Sequence

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
        self._saving: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def moved(self, attempt: Attempt) -> None:
        """It took a step: to be written within its interval."""
        if self._saving is None:
            self._saving = asyncio.create_task(self._save_progress(), context=contextvars.Context())
        if self._writing is None and self._settings.state_max_bytes and attempt.snapshots.unsaved():
            self._writing = asyncio.create_task(self._keep_all(), context=contextvars.Context())

    async def keep(self, one: Attempt, fence: int) -> None:
        """Write where a job's images are. Raises StaleLease; the database's outages are only logged."""
        parts = one.snapshots.unsaved()
        packed = await asyncio.to_thread(one.snapshots.pack, parts, self._settings.state_max_bytes)
        try:
            if packed:
                await self._store.keep(one.job.id, fence, packed)
        except StoreUnavailable as error:
            log.warning("states weren't stored", cause=repr(error.__cause__))
            return
        one.snapshots.saved(parts, packed)

    async def stop(self) -> None:
        """Write no more."""
        beside = {task for task in (self._saving, self._writing) if task is not None}
        for task in beside:
            task.cancel()
        if beside:
            await asyncio.wait(beside)

    async def _save_progress(self) -> None:
        """While jobs move: write now and then how far all of them are, for those who ask another process."""
        try:
            while True:
                await asyncio.sleep(self._settings.progress_interval_s)
                moved = [one for one in self._attempts.values() if one.unsaved and one.fence is not None]
                if not moved:
                    return
                await self._save(moved)
        except Exception:
            log.exception("progress wasn't stored, for a reason that is a bug")
        finally:
            self._saving = None

    async def _save(self, moved: Sequence[Attempt]) -> None:
        """Write the progress to the store, and see which jobs are still wanted and still ours."""
        for one in moved:
            one.unsaved = False
        fences = {one.job.id: one.fence for one in moved if one.fence is not None}
        try:
            held = await self._store.progress(fences, {one.job.id: one.progress for one in moved})
        except StoreUnavailable as error:
            log.warning("progress wasn't stored", cause=repr(error.__cause__))
            return
        for one in moved:
            if one.job.id in held.lost:
                one.end(Stop.LOST)
            elif one.job.id in held.cancel_requested:
                one.end(Stop.CANCEL)

    async def _keep_all(self) -> None:
        """While jobs move: keep now and then where their images are, for whoever adopts them."""
        try:
            while True:
                await asyncio.sleep(self._settings.state_interval_s)
                moved = [(one, one.fence) for one in self._attempts.values() if one.snapshots.unsaved()]
                if not moved:
                    return
                for one, fence in moved:
                    if fence is None or one.job.id not in self._attempts:
                        continue
                    try:
                        await self.keep(one, fence)
                    except StaleLease:
                        one.end(Stop.LOST)
        except Exception:
            log.exception("states weren't stored, for a reason that is a bug")
        finally:
            self._writing = None
