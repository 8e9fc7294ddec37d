"""How many replicas a stage asks for, by the demands of its routers."""

from collections.abc import Mapping
from typing import Any

import pytest
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingContext

from deployments.autoscaling import DemandPolicy
from deployments.demand import Demand, DemandBoard


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def board(clock: Clock, *demands: Demand) -> DemandBoard:
    told = DemandBoard(clock)
    for demand in demands:
        told.report(demand)
    return told


def context(reports: Mapping[str, Mapping[str, float]], queued: float | None = None) -> AutoscalingContext:
    """reports: each replica's metrics, as its board has them. queued: requests that wait for a replica."""
    metrics: dict[str, dict[Any, list[TimeStampedValue]]] = {}
    for replica, values in reports.items():
        for name, value in values.items():
            metrics.setdefault(name, {})[replica] = [TimeStampedValue(0.0, 1e6), TimeStampedValue(1.0, value)]
    unused: dict[str, Any] = dict.fromkeys(
        (
            "deployment_id", "deployment_name", "app_name", "current_num_replicas", "target_num_replicas",
            "running_replicas", "total_num_requests", "total_queued_requests", "aggregated_metrics",
            "capacity_adjusted_min_replicas", "capacity_adjusted_max_replicas", "policy_state", "last_scale_up_time",
            "last_scale_down_time", "current_time", "config",
        )
    )  # fmt: skip
    return AutoscalingContext(**unused | {"raw_metrics": metrics, "total_queued_requests": queued})


def wanted(policy: DemandPolicy, *boards: DemandBoard) -> float:
    replicas, _ = policy(context({f"replica-{number}": told.metrics() for number, told in enumerate(boards)}))
    return replicas


def test_work_of_all_routers_is_divided_by_what_a_replica_is_to_have() -> None:
    clock = Clock()
    first = board(clock, Demand("a", 30.0, 3, 0.1), Demand("b", 20.0, 2, 0.1))
    assert wanted(DemandPolicy(10.0), first, board(clock)) == 5.0


def test_what_waits_for_a_first_replica_keeps_it_until_that_can_report() -> None:
    for policy in (DemandPolicy(10.0), DemandPolicy(10.0, target_ongoing_requests=4.0)):
        assert policy(context({}, queued=3.0)) == (1.0, {})
        assert policy(context({}, queued=0.0)) == policy(context({})) == (0.0, {})
    told = board(Clock(), Demand("a", 30.0, 3, 0.1)).metrics()
    assert DemandPolicy(10.0)(context({"replica": told}, queued=1.0)) == (3.0, {})


def test_images_are_counted_where_the_settings_say_so() -> None:
    told = board(Clock(), Demand("a", 1000.0, 12, 9.0))
    assert wanted(DemandPolicy(10.0, target_ongoing_requests=4.0), told) == 3.0


def test_what_would_be_late_asks_for_more() -> None:
    assert wanted(DemandPolicy(100.0), board(Clock(), Demand("a", 30.0, 3, 2.5), Demand("b", 30.0, 3, 1.5))) == 4.0


def test_a_router_that_several_replicas_know_counts_once() -> None:
    clock = Clock()
    boards = [board(clock, Demand("a", work_s, 1, 0.0)) for work_s in (30.0, 20.0)]
    assert wanted(DemandPolicy(10.0), *boards) == 3.0


def test_a_router_that_says_nothing_more_is_forgotten() -> None:
    clock = Clock()
    told = board(clock, Demand("a", 30.0, 3, 0.1))
    clock.now += 4.0
    assert wanted(DemandPolicy(10.0), told) == 3.0
    clock.now += 2.0
    assert set(told.metrics().values()) == {0.0}, "so that the last sample isn't its last work"
    assert wanted(DemandPolicy(10.0), told) == 0.0
    clock.now += 600.0
    assert told.metrics() == {}


def test_a_router_that_has_nothing_more_to_do_lets_the_replicas_go() -> None:
    told = board(Clock(), Demand("a", 30.0, 3, 0.1), Demand("a", 0.0, 0, 0.0))
    assert wanted(DemandPolicy(10.0), told) == 0.0


@pytest.mark.parametrize("metrics", [{}, {"replica-0": {"something_else": 4.0}}])
def test_no_demand_is_no_replica(metrics: dict[str, dict[str, float]]) -> None:
    replicas, _ = DemandPolicy(10.0)(context(metrics))
    assert replicas == 0.0
