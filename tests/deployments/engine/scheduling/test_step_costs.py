"""How large a batch pays is measured, remembered, and looked at again."""

import pytest

from deployments.engine.batch import bucket_for
from deployments.engine.scheduling.step_costs import StepCosts


def known(**seconds: float) -> StepCosts[str]:
    """Costs of "shape" by bucket (`b8=0.8`)."""
    costs: StepCosts[str] = StepCosts()
    for bucket, cost in seconds.items():
        for _ in range(3):
            costs.record("shape", int(bucket[1:]), cost)
    return costs


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16)])
def test_buckets_are_powers_of_two(rows: int, bucket: int) -> None:
    assert bucket_for(rows) == bucket


def test_what_is_unknown_is_tried() -> None:
    costs: StepCosts[str] = StepCosts()
    assert costs.worthwhile("shape", 10) == 16
    for bucket in (16, 8, 4):
        for _ in range(3):
            costs.record("shape", bucket, 0.1 * bucket)
        assert costs.worthwhile("shape", 10) == bucket // 2
    assert costs.worthwhile("another shape", 10) == 16


def test_a_larger_batch_must_serve_more() -> None:
    assert known(b16=1.6, b8=0.8, b4=0.8).worthwhile("shape", 10) == 8
    assert known(b16=1.6, b8=0.8, b4=0.8).worthwhile("shape", 16) == 8
    assert known(b16=1.0, b8=1.0, b4=1.0).worthwhile("shape", 10) == 16
    assert known(b16=1.0, b8=0.8, b4=0.8).worthwhile("shape", 16) == 16
    assert known(b16=1.0, b8=0.8, b4=0.8).worthwhile("shape", 9) == 8


def test_one_lane_with_guidance_is_never_cut() -> None:
    assert known(b2=1.0, b1=0.1).worthwhile("shape", 2) == 2


def test_lanes_that_are_less_urgent_have_the_room_that_costs_nothing() -> None:
    assert known(b2=0.2, b4=0.4, b8=0.8).unslowed("shape", 2) == 2
    assert known(b2=0.2, b4=0.4, b8=0.8).unslowed("shape", 3) == 4
    assert known(b2=1.0, b4=1.05, b8=1.1, b16=1.2).unslowed("shape", 2) == 8


def test_room_of_unknown_cost_is_tried_once_the_cost_without_it_is_known() -> None:
    assert known().unslowed("shape", 2) == 2
    assert known(b2=1.0).unslowed("shape", 2) == 4
    assert known(b2=1.0, b4=1.0).unslowed("shape", 2) == 8
    assert known(b2=1.0, b4=2.0).unslowed("shape", 2) == 2


def test_a_slow_first_step_is_not_believed() -> None:
    costs = known(b16=1.0, b8=1.0, b4=1.0)
    costs.record("shape", 16, 50.0)
    assert costs.worthwhile("shape", 16) == 16


def test_a_larger_batch_is_looked_at_again() -> None:
    costs = known(b16=1.6, b8=0.8, b4=0.8)
    decisions = [costs.worthwhile("shape", 10) for _ in range(128)]
    assert decisions.count(16) == 2
    assert decisions.count(8) == 126


def test_what_a_row_takes_at_best() -> None:
    assert known(b16=1.6, b8=0.4).row_seconds("shape") == 0.05
    assert StepCosts[str]().row_seconds("shape") == 0.0


def test_only_so_many_shapes_are_remembered() -> None:
    costs: StepCosts[int] = StepCosts()
    for shape in range(1000):
        for _ in range(3):
            costs.record(shape, 16, 1.6)
    assert costs.worthwhile(0, 10) == 16
    assert costs.worthwhile(999, 10) == 8
