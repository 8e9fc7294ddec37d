"""Gives the lanes of one stage their places: the router's own backlog in front of the stage's replicas.

A lane gets a replica when that has room for it, in the backlog's order; the rest waits here, so that a replica that
comes is given work at once. Each router has its own backlog. What other routers' lanes take of a replica is known from
its reports, and where two routers want its last place, the replica refuses one of them.
"""

import asyncio
import itertools
import random
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from deployments.dispatch import Dispatch, LaneGroup, ReplicaLoad
from deployments.engine.config import EngineSettings
from deployments.engine.types import DenoiseRequest
from deployments.replica_lists import DeploymentKey, Replicas, forget, listen, running
from serve_app.dispatch.backlog import Backlog, WaitingLane
from serve_app.dispatch.placement import Candidate, choose
from serve_app.dispatch.replica_view import ReplicaView

# how often a backlog looks again for a place where nothing of ours will end and tell of one
_LOOK_AGAIN_S = 0.5

# a lane that comes looks at so many replicas at most: among these the best is nearly as good as the best of all
# (Mitzenmacher, The Power of Two Choices, 2001), and a thousand would take a hundredth of a second of the router's core
_LOOKED_AT = 64

Withdraw = Callable[[str, Sequence[str]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A lane's place at a replica, for as long as its stream lasts."""

    dispatch: Dispatch
    _lane: WaitingLane
    _dispatcher: "Dispatcher"

    def said(self, load: ReplicaLoad) -> None:
        """The replica has reported its load in the lane's stream."""
        self._dispatcher.said(self._lane, load)

    def stepped(self) -> None:
        """The lane has taken a step."""
        self._dispatcher.stepped(self._lane)


class Dispatcher:
    """The lanes of one stage in this router. Belongs to one event loop.

    Args:
        stage: The stage's deployment.
        engine: Settings of its engines.
        sender: This router's id.
        withdraw: Asks a replica to give lanes back that haven't taken a step; their streams then end with Withdrawn.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        stage: DeploymentKey,
        engine: EngineSettings,
        sender: str,
        withdraw: Withdraw,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._engine = engine
        self._sender = sender
        self._withdraw = withdraw
        self._clock = clock
        self._arrivals = itertools.count(1)
        self._backlog = Backlog()
        self._granted: dict[WaitingLane, asyncio.Future[str]] = {}
        self._views: dict[str, ReplicaView] = {}
        self._at: dict[WaitingLane, ReplicaView] = {}
        self._unbegun: set[WaitingLane] = set()  # at a replica, without a step
        self._listed: Replicas | None = None
        self._replicas: dict[ReplicaView, frozenset[str]] = {}
        self._holders: Mapping[str, list[ReplicaView]] = {}  # by checkpoint
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._random = random.Random(sender)
        self._changed: set[ReplicaView] = set()  # not looked at since they came, or advertise other checkpoints
        self._looks = False  # at those, as soon as the loop comes to it

    @property
    def waiting(self) -> int:
        """Lanes without a place."""
        return len(self._backlog)

    @property
    def replicas(self) -> int | None:
        """Running replicas of the stage; None while nobody has said."""
        known = running(self._stage)
        return None if known is None else len(known)

    @asynccontextmanager
    async def place(self, request: DenoiseRequest, work_s: float) -> AsyncIterator[Place]:
        """Wait for a place, and keep it. work_s: device seconds that the lane is expected to take; 0: nobody knows."""
        self._listen()
        lane = WaitingLane.of(request, work_s, self._clock(), next(self._arrivals))
        granted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._granted[lane] = granted
        first = self._backlog.add(lane)
        try:
            if first:  # behind another one it can't have what that couldn't
                self._give_places(self._some(lane.group.checkpoint))
            replica = await granted
            yield Place(Dispatch(self._sender, replica), lane, self)
        finally:
            self._give_places(self._leave(lane))

    def said(self, lane: WaitingLane, load: ReplicaLoad) -> None:
        """A replica has reported its load in a lane's stream; a lane that was for any replica is at this one."""
        view = self._view(load.replica)
        at = self._at[lane]
        if at is not view:
            at.remove(lane)
            view.add(lane, frozenset(load.checkpoints))
            self._at[lane] = view
        view.said(load, lane)
        self._give_places({at, view})

    def stepped(self, lane: WaitingLane) -> None:
        """A lane has taken a step."""
        self._unbegun.discard(lane)
        self._at[lane].stepped(lane)

    def close(self) -> None:
        """No lane comes any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._loop is not None:
            forget(self._stage, self._replicas_changed)
            self._loop = None

    def _leave(self, lane: WaitingLane) -> set[ReplicaView]:
        """A lane has ended, or has gone before it got a place; the replica that it leaves."""
        self._backlog.remove(lane)
        del self._granted[lane]
        self._unbegun.discard(lane)
        view = self._at.pop(lane, None)
        if view is None:
            return set()
        view.remove(lane)
        return {view}

    def _listen(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            listen(self._stage, self._replicas_changed)

    def _replicas_changed(self) -> None:
        """From any thread."""
        loop = self._loop
        if loop is not None and not self._looks:
            self._looks = True
            loop.call_soon_threadsafe(self._look_at_changed)

    def _look_at_changed(self) -> None:
        """Replicas that have come, or advertise other checkpoints, may have room."""
        self._looks = False
        self._current()
        changed, self._changed = self._changed, set()
        self._give_places(changed)

    def _view(self, replica: str) -> ReplicaView:
        if replica not in self._views:
            self._views[replica] = ReplicaView(replica, self._limit, self._engine.resident_checkpoints, self._clock)
        return self._views[replica]

    def _limit(self, group: LaneGroup) -> int:
        return self._engine.reproducible_rows if group.reproducible else self._engine.max_rows

    def _current(self) -> Mapping[ReplicaView, frozenset[str]]:
        """The replicas that lanes may go to, with the checkpoints that Serve knows of each."""
        known = running(self._stage)
        if not known:
            nameless = self._view("")
            # Serve's own queue takes a few until it says who there is; where there is none, one lane wakes the stage
            return {} if known is not None and nameless.load().groups else {nameless: frozenset()}
        if known is not self._listed:
            for gone in self._views.keys() - known.keys() - {""}:
                if self._views[gone] not in self._at.values():
                    del self._views[gone]
            # the first of equally good ones is chosen: routers have orders of their own, or all would choose the same
            order = sorted(known, key=lambda replica: zlib.crc32(f"{self._sender} {replica}".encode()))
            before, self._replicas = self._replicas, {self._view(replica): known[replica] for replica in order}
            self._changed |= {view for view, advertised in self._replicas.items() if before.get(view) != advertised}
            holders: defaultdict[str, list[ReplicaView]] = defaultdict(list)
            for view, advertised in self._replicas.items():
                for checkpoint in advertised:
                    holders[checkpoint].append(view)
            self._holders = holders
            self._listed = known
        return self._replicas

    def _some(self, checkpoint: str) -> Collection[ReplicaView]:
        """Replicas enough for a lane to choose from: those that have its checkpoint first."""
        current = self._current()
        if len(current) <= _LOOKED_AT:
            return current.keys()
        holders = self._holders.get(checkpoint, [])
        if len(holders) >= _LOOKED_AT:
            return self._random.sample(holders, _LOOKED_AT)
        others = list(current.keys() - holders)
        return holders + self._random.sample(others, min(len(others), _LOOKED_AT - len(holders)))

    def _give_places(self, views: Collection[ReplicaView]) -> None:
        """Give places to lanes until none can have one. views: replicas that may have room where there was none."""
        current = self._current()
        looked_at = {view: current[view] for view in views if view in current}
        candidates: dict[LaneGroup, dict[ReplicaView, Candidate]] = {}
        while self._backlog and (changed := self._give_place(looked_at, candidates)):
            for group, of_group in candidates.items():
                of_group[changed] = self._candidate(changed, current[changed], group)
        loop = asyncio.get_running_loop()
        if not self._backlog:
            self._even_out(current)
        elif self._timer is None:
            self._timer = loop.call_later(_LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        """Others' lanes may have ended at replicas where none of ours tells of it."""
        self._timer = None
        wanted = [checkpoint for checkpoint, lanes in self._backlog.by_checkpoint.items() if lanes]
        self._give_places({view for checkpoint in wanted for view in self._some(checkpoint)})

    def _give_place(
        self,
        looked_at: Mapping[ReplicaView, frozenset[str]],
        candidates: dict[LaneGroup, dict[ReplicaView, Candidate]],
    ) -> ReplicaView | None:
        """Give the first lane that can have one its place, and say at which replica; None where none can.

        candidates: the replicas as lanes of each group see them, filled in here.
        """
        for lane in self._backlog.heads():
            if self._granted[lane].cancelled():
                continue
            if lane.group not in candidates:
                candidates[lane.group] = {
                    view: self._candidate(view, advertised, lane.group) for view, advertised in looked_at.items()
                }
            chosen = choose(
                lane,
                candidates[lane.group].values(),
                self._backlog.by_checkpoint,
                is_held=partial(self._is_held, lane.group.checkpoint),
                waited_s=self._clock() - lane.since,
                patience_s=self._engine.swap_patience_s,
            )
            if chosen is not None:
                view = self._views[chosen.load.replica]
                self._backlog.take(lane)
                view.add(lane, looked_at[view])
                self._at[lane] = view
                self._unbegun.add(lane)
                self._granted[lane].set_result(view.replica)
                return view
        return None

    def _is_held(self, checkpoint: str) -> bool:
        """Any replica has the checkpoint, or will."""
        return any(checkpoint in view.checkpoints(advertised)[0] for view, advertised in self._current().items())

    def _candidate(self, view: ReplicaView, advertised: frozenset[str], group: LaneGroup) -> Candidate:
        held, spare = view.checkpoints(advertised)
        return Candidate(view.load(), view.limit(group), view.row_seconds(group), held, spare, view.settled_s)

    def _even_out(self, current: Mapping[ReplicaView, frozenset[str]]) -> None:
        """Nothing waits here: lanes that wait in a replica for their first step move to one that has nothing to do."""
        batches = {view: view.load().batches() for view in {self._at[lane] for lane in self._unbegun}}
        crowded = {view for view in batches if view in current and _gives(view, batches[view])}
        for idle in current if crowded else ():
            if not crowded:
                return
            if idle.load().groups:
                continue
            fullest = max(crowded, key=batches.__getitem__)
            held, _ = idle.checkpoints(current[idle])
            moved: list[str] = []
            given = 0.0
            for lane in fullest.movable():
                share = lane.rows / fullest.limit(lane.group)
                if batches[fullest] - share < max(1.0, given + share):
                    break
                if lane.group.checkpoint in held:
                    fullest.withdraw(lane)
                    moved.append(lane.lane_id)
                    batches[fullest] -= share
                    given += share
            if moved:
                self._withdraw(fullest.replica, moved)
            if not _gives(fullest, batches[fullest]):
                crowded.remove(fullest)


def _gives(crowded: ReplicaView, batches: float) -> bool:
    """A replica that holds so many batches has a lane for one that holds none, and keeps a batch."""
    lane = next(iter(crowded.movable()), None)
    if lane is None:
        return False
    share = lane.rows / crowded.limit(lane.group)
    return batches - share >= max(1.0, share)
