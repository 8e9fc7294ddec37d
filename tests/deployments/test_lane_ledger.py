"""Which lanes a replica takes, and what it tells the routers."""

from collections.abc import Callable
from typing import Any

import pytest

from deployments.dispatch import GroupLoad, LaneGroup
from deployments.engine.types import DenoiseRequest, Priority
from deployments.lane_ledger import LaneLedger
from tests.serve_app.dispatch.test_backlog import request

LIMIT = 4


@pytest.fixture
def ledger() -> LaneLedger:
    return LaneLedger("replica-1", lambda asked: 2 if asked.reproducible else LIMIT, lambda _: 0.25)


@pytest.fixture
def accept(ledger: LaneLedger) -> Callable[..., bool]:
    def accept(**fields: Any) -> bool:
        return ledger.accept(request(**fields), bounded=True)

    return accept


def test_two_batches_are_taken(accept: Callable[..., bool]) -> None:
    assert [accept() for _ in range(5)] == [True] * 4 + [False]


def test_a_row_without_guidance_is_half_a_lane(accept: Callable[..., bool]) -> None:
    assert [accept(guidance_scale=1.0) for _ in range(9)] == [True] * 8 + [False]


def test_shapes_share_the_replica(accept: Callable[..., bool]) -> None:
    taken = [accept(), accept(width=512), accept(), accept(reproducible=True), accept(reproducible=True)]
    assert taken == [True, True, True, False, False], "a reproducible lane is a batch"


def test_a_higher_class_finds_its_place(accept: Callable[..., bool]) -> None:
    assert [accept(priority=Priority.BATCH) for _ in range(5)] == [True] * 4 + [False]
    assert [accept(priority=Priority.INTERACTIVE) for _ in range(5)] == [True] * 4 + [False]
    assert [accept(priority=Priority.NORMAL) for _ in range(2)] == [True, False], "each class has room for one"


def test_who_leaves_makes_room(ledger: LaneLedger, accept: Callable[..., bool]) -> None:
    lanes: list[DenoiseRequest] = [request() for _ in range(4)]
    assert all(ledger.accept(lane, bounded=True) for lane in lanes)
    assert not accept()
    ledger.remove(lanes[0])
    assert accept()


def test_a_caller_that_is_no_router_is_never_refused(ledger: LaneLedger) -> None:
    assert all(ledger.accept(request(), bounded=False) for _ in range(20))


def test_a_report_says_what_is_held(ledger: LaneLedger, accept: Callable[..., bool]) -> None:
    for priority in (Priority.NORMAL, Priority.NORMAL, Priority.INTERACTIVE):
        accept(priority=priority)
    report = ledger.report("router-1", request(), ("first",))
    group = LaneGroup("first", 256, 256, False)
    assert (report.replica, report.checkpoints, report.accepted) == ("replica-1", ("first",), True)
    assert report.groups == {group: GroupLoad((0, 4, 2), LIMIT, 0.25)}
    assert (report.batches(), report.batches(Priority.INTERACTIVE)) == (1.5, 0.5)


def test_a_router_is_told_again_when_something_has_changed(
    ledger: LaneLedger, accept: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("deployments.lane_ledger.time.monotonic", lambda: now)
    assert ledger.owes("router-1")
    ledger.report("router-1", request(), ())
    now = 10.0
    assert not ledger.owes("router-1")
    accept()
    assert ledger.owes("router-1")
    ledger.report("router-1", request(), ())
    accept()
    assert not ledger.owes("router-1"), "not at once: a burst's lanes come one after the other"
    assert ledger.owes("router-2")


def test_a_refused_lane_s_router_learns_how_many_rows_its_group_takes(ledger: LaneLedger) -> None:
    refused = request(reproducible=True)
    report = ledger.report("router-1", refused, (), accepted=False)
    assert report.groups == {LaneGroup.of(refused): GroupLoad((0, 0, 0), 2, 0.25)}
    assert report.batches() == 0
