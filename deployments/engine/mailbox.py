"""What callers, in any thread, hand to the engine's thread.

Once it is closed nothing more gets in, and nothing that got in is lost: whoever closes it is given what is left.
"""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from deployments.engine.errors import EngineStopped
from deployments.engine.lanes.lane import Ticket


@dataclass(frozen=True, slots=True)
class Submit:
    """A lane wants to run."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Cancel:
    """A lane is to leave at the next step boundary."""

    lane_id: str


@dataclass(frozen=True, slots=True)
class Load:
    """A checkpoint is to be loaded now; `done` hears of it."""

    checkpoint: str
    done: "Future[None]"


class Traced:
    """A sampler's table or the files that a ticket waits for are there; it holds them, this only wakes the thread."""


class Stop:
    """The thread is to end."""


Message = Submit | Cancel | Load | Traced | Stop


class Mailbox:
    """A queue with many writers and one reader, and an end."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Lock()  # so that nothing is put after the end
        self._ended: str | None = None

    def post(self, message: Message) -> None:
        """Leave a message. Raises EngineStopped, saying why, if nobody will read it."""
        with self._lock:
            self.check()
            self._messages.put(message)

    def tell(self, message: Message) -> None:
        """Leave a message that means nothing once the mailbox is closed."""
        with self._lock:
            if self._ended is None:
                self._messages.put(message)

    def check(self) -> None:
        """Raise EngineStopped if the mailbox is closed."""
        if self._ended is not None:
            raise EngineStopped(self._ended)

    def take(self, timeout_s: float) -> Message | None:
        """The next message, or None if there is none within the time (0: at once)."""
        try:
            return self._messages.get(timeout=timeout_s) if timeout_s else self._messages.get_nowait()
        except queue.Empty:
            return None

    def close(self, reason: str) -> list[Message]:
        """Refuse further messages for this reason; returns those that nobody has read."""
        with self._lock:
            self._ended = reason
        unread = []
        while not self._messages.empty():
            unread.append(self._messages.get())
        return unread
