"""What a router knows of one replica: its own lanes there, and what the replica last said of all others."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from deployments.dispatch import NO_ROWS, GroupLoad, LaneGroup, ReplicaLoad
from serve_app.dispatch.backlog import WaitingLane

# what was said of others' lanes counts for so long where nothing newer can come, as no lane of ours is there
_STALE_S = 2.0


class ReplicaView:
    """One replica of a stage. Belongs to the dispatcher's event loop.

    Args:
        replica: Serve's unique id of it; "" stands for replicas that aren't known by name.
        limit: Most UNet rows of a group's step, until the replica has said it itself.
        resident: Checkpoints that its device holds at once.
    """

    def __init__(
        self,
        replica: str,
        limit: Callable[[LaneGroup], int],
        resident: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replica = replica
        self._settings_limit = limit
        self._resident = resident
        self._clock = clock
        self._lanes: dict[WaitingLane, None] = {}
        self._arrived: set[WaitingLane] = set()
        self._stepped: set[WaitingLane] = set()
        self._withdrawn: set[WaitingLane] = set()
        self._others: dict[LaneGroup, GroupLoad] = {}
        self._limits: dict[LaneGroup, int] = {}
        self._row_s: dict[LaneGroup, float] = {}
        self._said: tuple[str, ...] = ()
        self._said_at = float("-inf")
        self._changed_at = float("-inf")
        self._load: ReplicaLoad | None = None

    @property
    def settled_s(self) -> float:
        """Seconds since a lane was sent to it for which it has to change its checkpoint."""
        return self._clock() - self._changed_at

    def add(self, lane: WaitingLane, advertised: frozenset[str]) -> None:
        """A lane is sent to it. advertised: as in `checkpoints`."""
        held, _ = self.checkpoints(advertised)
        if lane.group.checkpoint not in held:
            self._changed_at = self._clock()
        self._lanes[lane] = None
        self._load = None

    def remove(self, lane: WaitingLane) -> None:
        """A lane has left it."""
        self._lanes.pop(lane, None)
        self._load = None
        for lanes in (self._arrived, self._stepped, self._withdrawn):
            lanes.discard(lane)

    def stepped(self, lane: WaitingLane) -> None:
        """A lane has taken a step there: it stays."""
        self._stepped.add(lane)

    def withdraw(self, lane: WaitingLane) -> None:
        """A lane is asked back."""
        self._withdrawn.add(lane)

    def said(self, load: ReplicaLoad, lane: WaitingLane) -> None:
        """The replica has said what it holds, in the stream of one of our lanes."""
        self._load = None
        if load.accepted:
            self._arrived.add(lane)
        mine = _rows_by_group(self._arrived)
        self._others = {}
        for group, held in load.groups.items():
            own = mine.get(group, NO_ROWS)
            rows = tuple(max(0, all_rows - own_rows) for all_rows, own_rows in zip(held.rows, own, strict=True))
            self._others[group] = GroupLoad(rows, held.limit, held.row_s)
            self._limits[group] = held.limit
            self._row_s[group] = held.row_s
        self._said = load.checkpoints
        self._said_at = self._clock()

    def limit(self, group: LaneGroup) -> int:
        """Most UNet rows of a step of the group."""
        return self._limits.get(group) or self._settings_limit(group)

    def row_seconds(self, group: LaneGroup) -> float:
        """What a row of such a step takes at best; 0 while nobody knows."""
        return self._row_s.get(group, 0.0)

    @property
    def _stale(self) -> bool:
        """What it last said may hold no longer, and nothing newer comes."""
        return not self._lanes and self._clock() - self._said_at > _STALE_S

    def load(self) -> ReplicaLoad:
        """All lanes that it holds, as far as this router knows."""
        if self._others and self._stale:
            self._others = {}
            self._load = None
        if self._load is None:
            groups = {group: held for group, held in self._others.items() if any(held.rows)}
            for group, rows in _rows_by_group(self._lanes).items():
                others = groups[group].rows if group in groups else NO_ROWS
                total = tuple(own + other for own, other in zip(rows, others, strict=True))
                groups[group] = GroupLoad(total, self.limit(group), self.row_seconds(group))
            self._load = ReplicaLoad(self.replica, groups)
        return self._load

    def checkpoints(self, advertised: frozenset[str]) -> tuple[frozenset[str], bool]:
        """The checkpoints that it will hold when its lanes are begun, and whether there is room for one more.

        A lane that was sent for another one makes it change: the oldest goes. advertised: what Serve knows of it.
        """
        known = tuple(advertised) if self._stale else self._said or tuple(advertised)
        coming = {lane.group.checkpoint for lane in self._lanes} - set(known)
        kept = known[len(coming) :] if len(known) + len(coming) > self._resident else known
        held = frozenset(kept) | coming
        return held, len(held) < self._resident

    def movable(self) -> list[WaitingLane]:
        """Our lanes that wait there for their first step, the newest first."""
        return [lane for lane in reversed(self._lanes) if lane not in self._stepped and lane not in self._withdrawn]


def _rows_by_group(lanes: "set[WaitingLane] | dict[WaitingLane, None]") -> Mapping[LaneGroup, tuple[int, ...]]:
    rows: defaultdict[LaneGroup, list[int]] = defaultdict(lambda: list(NO_ROWS))
    for lane in lanes:
        rows[lane.group][lane.priority] += lane.rows
    return {group: tuple(held) for group, held in rows.items()}
