"""What happens to the jobs of this process, for whoever watches: an in-process hub of progress.

A watcher that reads slowly misses nothing but intermediate steps: what it hasn't read is replaced by what is newer,
so its mailbox never grows. Jobs of other processes aren't here.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from deployments.engine.types import Pixels
from serve_app.jobs.job import Job, JobProgress


@dataclass(frozen=True, slots=True)
class News:
    """What has happened since a watcher last looked.

    progress: the latest, None where the job has left this process. ended: the job at its end; nothing follows.
    previews: image index -> its latest preview, uint8 (height / 8, width / 8, 3).
    """

    progress: JobProgress | None
    previews: dict[int, Pixels]
    ended: Job | None


@dataclass(slots=True, eq=False)
class Watch:
    """One watcher's mailbox."""

    _progress: JobProgress | None = None
    _previews: dict[int, Pixels] = field(default_factory=dict)
    _ended: Job | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self, timeout_s: float, pause_s: float = 0.0) -> News | None:
        """The news since the last call, as soon as there is some; None when there is none for `timeout_s`.

        pause_s: let steps add up for so long before; the end doesn't wait.
        """
        if pause_s:
            await _happens(self._over, pause_s)
        if not await _happens(self._news, timeout_s):
            return None
        news = News(self._progress, self._previews, self._ended)
        self._progress, self._previews = None, {}
        if self._ended is None:
            self._news.clear()
        return news

    async def end(self, timeout_s: float) -> Job | None:
        """The job at its end; None when it doesn't end within `timeout_s`."""
        return self._ended if await _happens(self._over, timeout_s) else None

    def _put(self, progress: JobProgress | None, previews: dict[int, Pixels], ended: Job | None) -> None:
        self._progress = progress or self._progress
        self._previews |= previews
        self._ended = ended or self._ended
        self._news.set()
        if ended is not None:
            self._over.set()


async def _happens(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


class EventHub:
    """Progress and ends of the jobs that this process runs, by job id. Belongs to one event loop."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._latest: dict[str, News] = {}

    def open(self, job_id: str) -> None:
        """From now on this process runs the job."""
        self._latest.setdefault(job_id, News(None, {}, None))

    def progress(self, job_id: str, progress: JobProgress, previews: dict[int, Pixels]) -> None:
        """The job, which is open here, moved on."""
        before = self._latest[job_id]
        self._latest[job_id] = News(progress, before.previews | previews, None)
        for watch in self._watches.get(job_id, ()):
            watch._put(progress, previews, None)

    def end(self, job: Job) -> None:
        """The job has ended; its watchers get it as it is now."""
        self._latest.pop(job.id, None)
        for watch in self._watches.pop(job.id, ()):
            watch._put(None, {}, job)

    def leave(self, job_id: str) -> None:
        """This process runs the job no more, but it hasn't ended: its watchers are woken, to look elsewhere."""
        self._latest.pop(job_id, None)
        for watch in self._watches.get(job_id, ()):
            watch._put(None, {}, None)

    def latest(self, job_id: str) -> JobProgress | None:
        """The progress of a job of this process, None where there is none yet (or no such job)."""
        latest = self._latest.get(job_id)
        return None if latest is None else latest.progress

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """A mailbox for a job's news, also for a job that isn't here (yet): its end may still come by."""
        watch = Watch()
        self._watches.setdefault(job_id, set()).add(watch)
        latest = self._latest.get(job_id)
        if latest is not None and latest.progress is not None:
            watch._put(latest.progress, latest.previews, None)
        try:
            yield watch
        finally:
            watches = self._watches.get(job_id)
            if watches is not None:
                watches.discard(watch)
                if not watches:
                    del self._watches[job_id]
