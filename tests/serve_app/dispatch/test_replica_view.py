"""What a router knows of a replica, and for how long."""

import pytest

from deployments.dispatch import GroupLoad, LaneGroup, ReplicaLoad
from serve_app.dispatch.replica_view import ReplicaView
from tests.serve_app.dispatch.test_backlog import lane

GROUP = LaneGroup("first", 256, 256, False)
LIMIT = 8


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock: Clock) -> ReplicaView:
    return ReplicaView("a", lambda _: LIMIT, 1, clock)


def test_others_lanes_are_what_it_says_less_our_own(view: ReplicaView) -> None:
    ours = lane()
    view.add(ours, frozenset({"first"}))
    assert view.load().batches() == 2 / LIMIT
    view.said(ReplicaLoad("a", {GROUP: GroupLoad((0, 6, 0), LIMIT)}, ("first",)), ours)
    assert view.load().batches() == 6 / LIMIT
    view.remove(ours)
    assert view.load().batches() == 4 / LIMIT


def test_what_it_said_is_forgotten_where_nothing_newer_can_come(view: ReplicaView, clock: Clock) -> None:
    """Other routers may have had it change its checkpoint meanwhile: Serve's list says so."""
    ours = lane()
    view.add(ours, frozenset({"first"}))
    view.said(ReplicaLoad("a", {GROUP: GroupLoad((0, 6, 0), LIMIT)}, ("first",)), ours)
    clock.now = 100.0
    assert view.load().batches() == 6 / LIMIT, "while a lane is there, changes are told"
    assert view.checkpoints(frozenset({"second"})) == (frozenset({"first"}), False)
    view.remove(ours)
    assert view.load().batches() == 0
    assert view.checkpoints(frozenset({"second"})) == (frozenset({"second"}), False)


def test_a_lane_of_another_checkpoint_takes_the_oldest_one_s_place(view: ReplicaView, clock: Clock) -> None:
    clock.now = 50.0
    assert view.settled_s == float("inf")
    view.add(lane(checkpoint="second"), frozenset({"first"}))
    assert view.checkpoints(frozenset({"first"})) == (frozenset({"second"}), False)
    clock.now = 60.0
    assert view.settled_s == 10.0


def test_the_newest_unbegun_lane_moves_first(view: ReplicaView) -> None:
    lanes = [lane() for _ in range(4)]
    for each in lanes:
        view.add(each, frozenset({"first"}))
    view.stepped(lanes[0])
    view.withdraw(lanes[3])
    assert view.movable() == [lanes[2], lanes[1]]
