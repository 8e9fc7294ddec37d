"""Messages of other threads to the engine's thread.

Once the mailbox is closed nothing more gets in, and nothing that got in is lost: `close` returns what is left.
"""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from deployments.engine.errors import EngineStopped
from deployments.engine.lanes.lane import Ticket


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a lane."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Cancel:
    """Remove a lane at the next step boundary."""

    lane_id: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A lane is to leave if it hasn't taken a step."""

    lane_id: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load a checkpoint now; `done` gets the result."""

    checkpoint: str
    done: "Future[None]"


@dataclass(frozen=True, slots=True)
class Retain:
    """Forget the checkpoints that came with requests and aren't among these."""

    added: frozenset[str]


class Traced:
    """A ticket's sampler table is traced, or its files are read. Only wakes the thread: the ticket holds them."""


class Stop:
    """End the thread."""


Message = Submit | Cancel | Withdraw | Load | Retain | Traced | Stop


class Mailbox:
    """A queue with many writers and one reader that can be closed."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Lock()  # so that nothing is put after the end
        self._ended: str | None = None

    def post(self, message: Message) -> None:
        """Leave a message. Raises EngineStopped if the mailbox is closed."""
        with self._lock:
            self.check()
            self._messages.put(message)

    def tell(self, message: Message) -> None:
        """Leave a message; drop it if the mailbox is closed."""
        with self._lock:
            if self._ended is None:
                self._messages.put(message)

    def check(self) -> None:
        """Raise EngineStopped, with the reason, if the mailbox is closed."""
        if self._ended is not None:
            raise EngineStopped(self._ended)

    def take(self, timeout_s: float) -> Message | None:
        """The next message; None if none comes within the time (0: don't wait)."""
        try:
            return self._messages.get(timeout=timeout_s) if timeout_s else self._messages.get_nowait()
        except queue.Empty:
            return None

    def close(self, reason: str) -> list[Message]:
        """Refuse further messages for this reason; return the unread ones."""
        with self._lock:
            self._ended = reason
        unread = []
        while not self._messages.empty():
            unread.append(self._messages.get())
        return unread
