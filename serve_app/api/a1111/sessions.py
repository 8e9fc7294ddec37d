"""The options and unfinished jobs of each caller of the A1111 dialect.

The original has one set of options for all clients, and its interrupt stops any request. Here both are the caller's
own. In memory: a restart forgets the options, and jobs end without the requests that waited for them.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serve_app.config.settings import Settings
from serve_app.jobs.job import Job

# callers without work beyond this many are forgotten, the longest silent first
_MOST_CALLERS = 1_000

# how many ended tasks a caller can still ask about
_ENDED_TASKS = 32


@dataclass(slots=True, eq=False)
class CallerSession:
    """The session of one caller.

    Attributes:
        jobs: unfinished ones by id, oldest first.
        tasks: the ids of its jobs by the ids that the caller gave them.
        ended: the caller's ids of ended jobs.
        model: chosen through options; None for the service's own.
        options: others that were chosen, by name.
        interrupted, skipped: since work last began on an empty session.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    ended: deque[str] = field(default_factory=lambda: deque(maxlen=_ENDED_TASKS))
    interrupted: bool = False
    skipped: bool = False

    @contextmanager
    def working(self, job: Job, task_id: str | None) -> Iterator[None]:
        """The job is being drawn for the length of the block."""
        if not self.jobs:
            self.interrupted = self.skipped = False
        self.jobs[job.id] = job
        if task_id:
            self.tasks[task_id] = job.id
        try:
            yield
        finally:
            del self.jobs[job.id]
            if task_id and self.tasks.get(task_id) == job.id:  # the caller may have used it twice
                del self.tasks[task_id]
                self.ended.append(task_id)

    def job_of(self, task_id: str) -> Job | None:
        """The unfinished job of an id that the caller gave it."""
        return self.jobs.get(self.tasks.get(task_id, ""))

    def chosen_model(self, settings: Settings) -> str | None:
        """The model that was chosen; an admin's choice may be none for another key of the tenant."""
        return self.model if self.model in settings.models else None


class CallerSessions:
    """Every caller's session by the caller's key."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, CallerSession] = OrderedDict()

    def of(self, caller: str) -> CallerSession:
        """The caller's session; an empty one where it has none yet."""
        session = self._sessions.setdefault(caller, CallerSession())
        self._sessions.move_to_end(caller)
        if len(self._sessions) > _MOST_CALLERS:
            idle = next((key for key, one in self._sessions.items() if not one.jobs and key != caller), None)
            if idle is not None:
                del self._sessions[idle]
        return session
