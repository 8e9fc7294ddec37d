"""The order in which lanes get their places."""

from itertools import count
from typing import Any

from deployments.engine.types import DenoiseRequest, Priority
from serve_app.dispatch.backlog import Backlog, WaitingLane

ARRIVALS = count(1)


def request(**fields: Any) -> DenoiseRequest:
    values: dict[str, Any] = {
        "lane_id": f"lane-{next(ARRIVALS)}",
        "checkpoint": "first",
        "seed": 1,
        "steps": 10,
        "guidance_scale": 5.0,
        "width": 256,
        "height": 256,
        "sampler": "euler",
    }
    return DenoiseRequest(**values | fields)


def lane(work_s: float = 1.0, now: float = 0.0, **fields: Any) -> WaitingLane:
    return WaitingLane.of(request(**fields), work_s, now, next(ARRIVALS))


def backlog(*lanes: WaitingLane) -> Backlog:
    waiting = Backlog()
    for each in lanes:
        waiting.add(each)
    return waiting


def drained(waiting: Backlog) -> list[WaitingLane]:
    order = []
    while waiting:
        order.append(waiting.heads()[0])
        waiting.take(order[-1])
    return order


def test_a_lane_takes_a_row_without_guidance_and_two_with_it() -> None:
    assert [lane(guidance_scale=scale).rows for scale in (1.0, 1.1)] == [1, 2]
    assert lane(guidance_scale=7.5, composed_prompts=3).rows == 4


def test_classes_go_one_after_the_other() -> None:
    batch, normal, urgent = (lane(priority=priority) for priority in Priority)
    assert drained(backlog(batch, normal, urgent)) == [urgent, normal, batch]


def test_tenants_share_by_device_time() -> None:
    """Bob's lanes cost a third of Alice's: three of his for each of hers."""
    alice = [lane(3.0, tenant="alice") for _ in range(2)]
    bob = [lane(1.0, tenant="bob") for _ in range(6)]
    order = drained(backlog(*alice, *bob))
    assert [each.tenant for each in order[:4]].count("bob") == 3
    assert [each.tenant for each in order[4:]].count("bob") == 3


def test_within_a_tenant_the_shorter_one_is_due_first_and_the_longer_one_not_for_ever() -> None:
    long = lane(10.0, now=0.0, width=512)
    soon, late = lane(1.0, now=20.0), lane(1.0, now=40.0)
    assert drained(backlog(long, soon, late)) == [soon, long, late]


def test_what_waited_elsewhere_counts() -> None:
    here, before = lane(now=10.0), lane(now=10.0, waited_s=9.0)
    assert drained(backlog(here, before)) == [before, here]


def test_who_has_gone_is_passed_over() -> None:
    first, second = lane(now=1.0), lane(now=2.0)
    waiting = backlog(first, second)
    waiting.remove(first)
    assert len(waiting) == 1
    assert waiting.heads() == [second]
    waiting.remove(second)
    assert not waiting
    assert waiting.heads() == []


def test_each_shape_has_a_head() -> None:
    small, small_too, large = lane(now=1.0), lane(now=2.0), lane(now=3.0, width=512)
    assert backlog(small, small_too, large).heads() == [small, large]
