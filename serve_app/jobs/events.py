"""An in-process hub of the progress of this process's jobs.

A watcher that reads slowly misses only intermediate steps: newer progress replaces what it hasn't read, so its mailbox
never grows. Jobs of other processes aren't here.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from deployments.engine.types import Pixels
from serve_app.jobs.job import Job, JobProgress


@dataclass(frozen=True, slots=True)
class News:
    """What has happened since a watcher's last look.

    Attributes:
        progress: the latest; None if the job has left this process.
        previews: the latest preview by image index, (height / 8, width / 8, 3), uint8.
        ended: the job at its end; nothing follows.
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
        """The news since the last call, as soon as there is some; None if there is none for `timeout_s`.

        Steps are first collected for `pause_s`; the job's end doesn't wait for that.
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
        """The job at its end; None if it doesn't end within `timeout_s`."""
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
    """Progress and ends of this process's jobs, by job id. Belongs to one event loop."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._latest: dict[str, News] = {}

    def open(self, job_id: str) -> None:
        """Note that this process runs the job from now on."""
        self._latest.setdefault(job_id, News(None, {}, None))

    def progress(self, job_id: str, progress: JobProgress, previews: dict[int, Pixels]) -> None:
        """Report the progress of a job that is open here."""
        before = self._latest[job_id]
        self._latest[job_id] = News(progress, before.previews | previews, None)
        for watch in self._watches.get(job_id, ()):
            watch._put(progress, previews, None)

    def end(self, job: Job) -> None:
        """Report a job's end to its watchers."""
        self._latest.pop(job.id, None)
        for watch in self._watches.pop(job.id, ()):
            watch._put(None, {}, job)

    def leave(self, job_id: str) -> None:
        """Wake the watchers of a job that has left this process without having ended."""
        self._latest.pop(job_id, None)
        for watch in self._watches.get(job_id, ()):
            watch._put(None, {}, None)

    def latest(self, job_id: str) -> JobProgress | None:
        """The progress of a job of this process; None if there is none yet, or no such job."""
        latest = self._latest.get(job_id)
        return None if latest is None else latest.progress

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """A mailbox for a job's news; also for a job that isn't here (yet), whose end may be reported here."""
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
