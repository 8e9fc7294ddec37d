"""Which replica a lane goes to."""

from collections.abc import Collection
from typing import Any

import pytest

from deployments.dispatch import GroupLoad, LaneGroup, ReplicaLoad
from deployments.engine.types import Priority
from serve_app.dispatch.backlog import WaitingLane
from serve_app.dispatch.placement import Candidate, choose
from tests.serve_app.dispatch.test_backlog import lane

SMALL, LARGE = LaneGroup("first", 256, 256, False), LaneGroup("first", 512, 512, False)
OTHER = LaneGroup("second", 256, 256, False)
LIMIT = 8


def replica(
    name: str,
    held: dict[LaneGroup, int] | None = None,
    priority: Priority = Priority.NORMAL,
    checkpoints: Collection[str] = ("first",),
    *,
    row_s: float = 0.0,
    spare: bool = False,
    settled_s: float = 100.0,
) -> Candidate:
    """held: rows by group."""
    rows = {
        group: GroupLoad(tuple(number if each is priority else 0 for each in Priority), LIMIT)
        for group, number in (held or {}).items()
    }
    return Candidate(ReplicaLoad(name, rows), LIMIT, row_s, checkpoints, spare, settled_s)


def place(waiting: WaitingLane, *candidates: Candidate, **fields: Any) -> str | None:
    values: dict[str, Any] = {
        "wanted": {"first": 1},
        "is_held": lambda: any(waiting.group.checkpoint in each.checkpoints for each in candidates),
        "waited_s": 0.0,
        "patience_s": 2.0,
    }
    chosen = choose(waiting, candidates, **values | fields)
    return None if chosen is None else chosen.load.replica


def test_the_least_busy_one_gets_it() -> None:
    assert place(lane(), replica("a", {SMALL: 8}), replica("b", {SMALL: 4}), replica("c", {SMALL: 6})) == "b"


def test_two_full_batches_are_all_that_a_replica_holds() -> None:
    assert place(lane(), replica("a", {SMALL: 14})) == "a"
    assert place(lane(), replica("a", {SMALL: 15})) is None


def test_lower_classes_leave_a_higher_one_its_place_and_keep_one_of_theirs() -> None:
    full = replica("a", {SMALL: 16}, Priority.BATCH)
    assert place(lane(priority=Priority.NORMAL), full) == "a"
    assert place(lane(priority=Priority.BATCH), full) is None
    assert place(lane(priority=Priority.BATCH), replica("a", {SMALL: 16})) == "a", "its class has none there"


def test_it_joins_its_own_shape_rather_than_taking_turns_with_another() -> None:
    assert place(lane(), replica("a", {LARGE: 2}), replica("b", {SMALL: 6})) == "b"


def test_an_idle_replica_is_better_than_a_busy_one_of_its_shape() -> None:
    assert place(lane(), replica("a", {SMALL: 2}), replica("b")) == "b"


def test_a_faster_device_gets_more() -> None:
    busy_but_fast = replica("a", {SMALL: 6}, row_s=0.1)
    assert place(lane(), busy_but_fast, replica("b", {SMALL: 4}, row_s=0.4)) == "a"
    assert place(lane(), busy_but_fast, replica("b", {SMALL: 4}, row_s=0.12)) == "b", "as fast, within the noise"


def test_who_has_the_checkpoint_goes_before_who_is_idle() -> None:
    assert place(lane(), replica("a", {SMALL: 8}), replica("b", checkpoints=("second",))) == "a"


def test_room_for_another_checkpoint_is_used_at_once() -> None:
    candidates = replica("a", {OTHER: 2}, checkpoints=("second",)), replica("b", checkpoints=("second",), spare=True)
    assert place(lane(), *candidates, wanted={"first": 1, "second": 1}) == "b"


def test_an_idle_replica_changes_at_once_where_nobody_wants_what_it_holds() -> None:
    idle = replica("a", checkpoints=("second",))
    assert place(lane(), idle) == "a"
    assert place(lane(), idle, wanted={"first": 1, "second": 1}) is None


@pytest.mark.parametrize(
    ("waited_s", "settled_s", "chosen"), [(29.0, 99.0, None), (99.0, 29.0, None), (30.0, 30.0, "a")]
)
def test_one_that_is_wanted_changes_for_who_has_waited_long_and_not_too_often(
    waited_s: float, settled_s: float, chosen: str | None
) -> None:
    busy = replica("a", {OTHER: 2}, checkpoints=("second",), settled_s=settled_s)
    assert place(lane(), busy, wanted={"first": 1, "second": 1}, waited_s=waited_s) == chosen


def test_an_interactive_lane_is_less_patient() -> None:
    busy = replica("a", {OTHER: 2}, checkpoints=("second",), settled_s=2.0)
    urgent = lane(priority=Priority.INTERACTIVE)
    assert place(urgent, busy, wanted={"first": 1, "second": 1}, waited_s=1.0) is None
    assert place(urgent, busy, wanted={"first": 1, "second": 1}, waited_s=2.0) == "a"


def test_a_busy_one_that_nobody_waits_for_changes_after_the_patience() -> None:
    assert place(lane(), replica("a", {OTHER: 2}, checkpoints=("second",), settled_s=1.0)) is None
    assert place(lane(), replica("a", {OTHER: 2}, checkpoints=("second",), settled_s=2.0)) == "a"


def test_none_changes_for_a_lane_whose_checkpoint_another_one_has_while_its_own_is_wanted() -> None:
    full, other = replica("a", {SMALL: 16}), replica("b", {OTHER: 2}, checkpoints=("second",))
    assert place(lane(), full, other, wanted={"first": 9, "second": 1}, waited_s=100.0) is None
    assert place(lane(), full, other, wanted={"first": 9}) == "b", "nobody waits for what it has"


def test_of_two_that_could_change_the_other_one_stays_as_it_is() -> None:
    """Three checkpoints on two replicas: one keeps its own, the other takes turns with two."""
    first = replica("a", {OTHER: 2}, checkpoints=("second",), settled_s=100.0)
    second = replica("b", {OTHER: 2}, checkpoints=("third",), settled_s=50.0)
    assert place(lane(), first, second, wanted={"first": 1, "second": 5, "third": 5}, waited_s=99.0) == "b"
    assert place(lane(), first, second, wanted={"first": 1, "second": 2, "third": 5}, waited_s=99.0) == "a"
