"""Which ticket may take its place on the device next.

Pure: no torch, no clock of its own. Decides between starting more lanes of what is loaded and draining it to load what
somebody else waits for.
"""

from collections.abc import Callable, Sequence

from deployments.engine.lane import Lane, Ticket


class Admission:
    """First come, first served within a priority, with a bounded exception for checkpoints that are loaded."""

    def __init__(self, max_lanes: int, swap_patience_s: float) -> None:
        """max_lanes counts the lanes of the same or a higher priority; both as in EngineSettings."""
        self._max_lanes = max_lanes
        self._patience = swap_patience_s

    def next_ticket(
        self,
        waiting: Sequence[Ticket],
        active: Sequence[Lane],
        loaded: Callable[[str], bool],
        can_load: bool,
        now: float,
    ) -> Ticket | None:
        """The ticket to admit now, or None.

        loaded: whether a checkpoint is resident. can_load: whether one that isn't could be (there is room, or an idle
        one to evict). now: monotonic seconds.
        """
        blocked_since: float | None = None
        for ticket in sorted(waiting, key=lambda ticket: (-ticket.request.priority, ticket.arrival)):
            if sum(lane.priority >= ticket.request.priority for lane in active) >= self._max_lanes:
                continue
            if not loaded(ticket.request.checkpoint):
                if can_load:
                    return ticket
                blocked_since = ticket.submitted if blocked_since is None else min(blocked_since, ticket.submitted)
            elif blocked_since is None or now - blocked_since <= self._patience:
                return ticket
        return None
