"""The backlog in front of a stage's replicas, with replicas that are only said to be there."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from deployments.dispatch import GroupLoad, LaneGroup, ReplicaLoad
from deployments.engine.config import EngineSettings
from deployments.engine.types import DenoiseRequest, Priority
from deployments.replica_lists import DeploymentKey, publish
from serve_app.dispatch.dispatcher import Dispatcher, Place
from serve_app.stages.client import Stages
from tests.serve_app.dispatch.test_backlog import request
from tests.serve_app.front import Front, until

STAGES = itertools.count()
MAX_ROWS = 4
ADVERTISED = frozenset({"first"})


class Lanes:
    """Lanes that keep their places until they are told to leave."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.places: dict[str, Place] = {}

    async def send(self, **fields: Any) -> str:
        """A lane's id, once it has a place or waits for one."""
        lane = request(**fields)
        self._leave[lane.lane_id] = asyncio.Event()
        self._tasks[lane.lane_id] = asyncio.create_task(self._hold(lane))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return lane.lane_id

    async def end(self, lane_id: str) -> None:
        self._leave[lane_id].set()
        await self._tasks[lane_id]
        await asyncio.sleep(0)

    async def cancel(self, lane_id: str) -> None:
        self._tasks[lane_id].cancel()
        with suppress(asyncio.CancelledError):
            await self._tasks[lane_id]

    async def cancel_all(self) -> None:
        for lane_id in self._tasks:
            await self.cancel(lane_id)

    def at(self, replica: str) -> list[str]:
        return [lane_id for lane_id, place in self.places.items() if place.dispatch.replica == replica]

    async def _hold(self, lane: DenoiseRequest) -> None:
        async with self._dispatcher.place(lane, 1.0) as place:
            self.places[lane.lane_id] = place
            try:
                await self._leave[lane.lane_id].wait()
            finally:
                del self.places[lane.lane_id]


class Stage:
    """A stage's dispatcher, and what its replicas were asked to give back."""

    def __init__(self, sender: str = "router-1", **settings: Any) -> None:
        self.key = DeploymentKey("application", f"Stage{next(STAGES)}")
        self.withdrawn: list[tuple[str, list[str]]] = []
        engine = EngineSettings(max_rows=MAX_ROWS, **settings)
        self.dispatcher = Dispatcher(self.key, engine, sender, self._withdraw)
        self.lanes = Lanes(self.dispatcher)

    def _withdraw(self, replica: str, lane_ids: Sequence[str]) -> None:
        self.withdrawn.append((replica, list(lane_ids)))

    def run(self, *replicas: str, checkpoints: frozenset[str] = ADVERTISED) -> None:
        publish(self.key, dict.fromkeys(replicas, checkpoints))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.lanes.cancel_all()
    stage.dispatcher.close()


async def test_a_lone_lane_goes_at_once_to_whatever_there_is(stage: Stage) -> None:
    lane_id = await stage.lanes.send()
    assert stage.lanes.places[lane_id].dispatch.replica == ""
    assert stage.lanes.places[lane_id].dispatch.sender == "router-1"


async def test_two_batches_go_to_a_replica_and_the_rest_waits(stage: Stage) -> None:
    stage.run("a")
    sent = [await stage.lanes.send() for _ in range(7)]
    assert stage.lanes.at("a") == sent[:4]
    assert stage.dispatcher.waiting == 3
    await stage.lanes.end(sent[0])
    assert stage.lanes.at("a") == sent[1:5]


async def test_replicas_are_filled_evenly(stage: Stage) -> None:
    stage.run("a", "b")
    for _ in range(6):
        await stage.lanes.send()
    assert (len(stage.lanes.at("a")), len(stage.lanes.at("b"))) == (3, 3)


async def test_of_very_many_replicas_those_that_hold_the_checkpoint_are_filled_evenly(stage: Stage) -> None:
    others = {f"other-{number}": frozenset({"second"}) for number in range(400)}
    publish(stage.key, others | {f"holder-{number}": ADVERTISED for number in range(100)})
    for _ in range(200):
        await stage.lanes.send(checkpoint="first")
    assert sum(len(stage.lanes.at(replica)) for replica in others) == 0
    assert {len(stage.lanes.at(f"holder-{number}")) for number in range(100)} <= {1, 2, 3}


async def test_of_very_many_replicas_the_one_that_gets_room_takes_the_lane_that_waits(stage: Stage) -> None:
    stage.run(*(f"{number}" for number in range(200)))
    sent = [await stage.lanes.send() for _ in range(200 * 4)]
    await until(lambda: not stage.dispatcher.waiting)
    last = await stage.lanes.send()
    assert stage.dispatcher.waiting == 1
    replica = stage.lanes.places[sent[17]].dispatch.replica
    await stage.lanes.end(sent[17])
    assert stage.lanes.places[last].dispatch.replica == replica


async def test_a_replica_that_comes_is_given_work_at_once(stage: Stage) -> None:
    stage.run("a")
    for _ in range(9):
        await stage.lanes.send()
    stage.run("a", "b")
    await until(lambda: len(stage.lanes.at("b")) == 4)
    assert stage.dispatcher.waiting == 1


async def test_of_replicas_that_come_at_once_each_is_given_work(stage: Stage) -> None:
    stage.run("a")
    for _ in range(4 + 3 * 4):
        await stage.lanes.send()
    for come in ("b", "bc", "bcd"):
        stage.run("a", *come)
    await until(lambda: not stage.dispatcher.waiting)
    assert [len(stage.lanes.at(replica)) for replica in "abcd"] == [4, 4, 4, 4]


async def test_a_higher_class_doesn_t_wait_behind_a_backlog(stage: Stage) -> None:
    stage.run("a")
    for _ in range(9):
        await stage.lanes.send()
    urgent = await stage.lanes.send(priority=Priority.INTERACTIVE)
    assert urgent in stage.lanes.at("a")


async def test_reproducible_lanes_count_by_their_own_bucket(stage: Stage) -> None:
    """Each of them is a batch of its own: two are what a replica takes."""
    stage.run("a")
    for _ in range(3):
        await stage.lanes.send(reproducible=True)
    assert len(stage.lanes.at("a")) == 2


async def test_what_others_send_there_counts(stage: Stage) -> None:
    stage.run("a", "b")
    lane_id = await stage.lanes.send()
    [replica] = [name for name in ("a", "b") if stage.lanes.at(name)]
    other = "b" if replica == "a" else "a"
    group = LaneGroup("first", 256, 256, False)
    # ours is two rows of these
    stage.lanes.places[lane_id].said(ReplicaLoad(replica, {group: GroupLoad((0, 6, 0), MAX_ROWS)}, ("first",)))
    for _ in range(5):
        await stage.lanes.send()
    assert (len(stage.lanes.at(replica)), len(stage.lanes.at(other))) == (2, 4)
    # they have left
    stage.lanes.places[lane_id].said(ReplicaLoad(replica, {group: GroupLoad((0, 4, 0), MAX_ROWS)}, ("first",)))
    await stage.lanes.send()
    assert len(stage.lanes.at(replica)) == 3


async def test_a_replica_that_takes_less_than_the_settings_say_is_believed(stage: Stage) -> None:
    stage.run("a")
    lane_id = await stage.lanes.send()
    group = LaneGroup("first", 256, 256, False)
    stage.lanes.places[lane_id].said(ReplicaLoad("a", {group: GroupLoad((0, 2, 0), 2)}, ("first",)))
    for _ in range(3):
        await stage.lanes.send()
    assert len(stage.lanes.at("a")) == 2


async def test_a_lane_that_was_refused_waits_until_there_is_room_by_the_replica_s_own_count(stage: Stage) -> None:
    """By the settings there would be room for it; the replica's memory takes two of its rows at once."""
    stage.run("a")
    first = await stage.lanes.send()
    for _ in range(2):
        await stage.lanes.send()
    large = await stage.lanes.send(width=512, height=512)
    groups = {LaneGroup("first", 512, 512, False): GroupLoad((0, 0, 0), 2)}
    stage.lanes.places[large].said(ReplicaLoad("a", groups, ("first",), accepted=False))
    await stage.lanes.cancel(large)  # as its stream ends with ReplicaFull, it comes anew
    await stage.lanes.send(width=512, height=512)
    assert stage.dispatcher.waiting == 1
    await stage.lanes.end(first)
    assert stage.dispatcher.waiting == 0


async def test_who_is_cancelled_leaves_its_place_and_the_backlog(stage: Stage) -> None:
    stage.run("a")
    sent = [await stage.lanes.send() for _ in range(6)]
    await stage.lanes.cancel(sent[4])
    assert stage.dispatcher.waiting == 1
    await stage.lanes.cancel(sent[0])
    await until(lambda: sent[5] in stage.lanes.at("a"))


async def test_lanes_that_wait_in_a_replica_move_to_one_that_has_nothing_to_do(stage: Stage) -> None:
    stage.run("a")
    sent = [await stage.lanes.send() for _ in range(4)]
    for lane_id in sent[:2]:
        stage.lanes.places[lane_id].stepped()
    stage.run("a", "b")
    await until(lambda: stage.withdrawn != [])
    assert stage.withdrawn == [("a", [sent[3], sent[2]])], "the newest first, and none that has taken a step"
    for lane_id in (sent[3], sent[2]):  # as their streams end with Withdrawn, they come anew
        await stage.lanes.cancel(lane_id)
        await stage.lanes.send()
    assert (len(stage.lanes.at("a")), len(stage.lanes.at("b"))) == (2, 2)


async def test_nothing_moves_from_a_replica_that_steps_all_it_has(stage: Stage) -> None:
    stage.run("a")
    for _ in range(2):
        await stage.lanes.send()
    stage.run("a", "b")
    await stage.lanes.send()
    assert stage.withdrawn == []


async def test_without_a_replica_one_lane_wakes_the_stage(stage: Stage) -> None:
    stage.run()
    for _ in range(3):
        await stage.lanes.send()
    assert len(stage.lanes.at("")) == 1
    stage.run("a")
    await until(lambda: len(stage.lanes.at("a")) == 2)


async def test_two_checkpoints_on_two_replicas_keep_to_one_each(stage: Stage) -> None:
    publish(stage.key, {"a": frozenset({"first"}), "b": frozenset({"second"})})
    for _ in range(3):
        await stage.lanes.send(checkpoint="first")
        await stage.lanes.send(checkpoint="second")
    for replica, checkpoint in (("a", "first"), ("b", "second")):
        lanes = stage.lanes.at(replica)
        assert len(lanes) == 3, checkpoint


async def test_a_third_checkpoint_waits_for_its_patience_and_takes_one_replica() -> None:
    stage = Stage(swap_patience_s=0.0)
    publish(stage.key, {"a": frozenset({"first"}), "b": frozenset({"second"})})
    await stage.lanes.send(checkpoint="first")
    await stage.lanes.send(checkpoint="second")
    third = [await stage.lanes.send(checkpoint="third") for _ in range(2)]
    assert len({stage.lanes.places[lane_id].dispatch.replica for lane_id in third}) == 1
    await stage.lanes.cancel_all()
    stage.dispatcher.close()


async def test_a_refused_lane_is_sent_again_with_its_wait(running: Front, stages: Stages) -> None:
    """No attempt of its job's, and its texts are encoded once."""
    assert (await running.generate("no room", seed=2)).json()["status"] == "complete"
    lanes = await stages.denoisers["sd15"].lanes_asked.remote()
    assert len(lanes) == 3
    assert [lane.waited_s for lane in lanes] == sorted(lane.waited_s for lane in lanes)
    assert len({lane.lane_id for lane in lanes}) == 1
    assert len(await stages.text_encoder.steps_asked.remote()) == 1


async def test_routers_don_t_all_begin_with_the_same_replica() -> None:
    routers = [Stage(sender=f"router-{number}") for number in range(8)]
    first = set()
    for router in routers:
        router.run(*(f"replica-{number}" for number in range(32)))
        await router.lanes.send()
        first |= {replica for replica in (f"replica-{number}" for number in range(32)) if router.lanes.at(replica)}
    assert len(first) >= 6
    for router in routers:
        await router.lanes.cancel_all()
        router.dispatcher.close()
