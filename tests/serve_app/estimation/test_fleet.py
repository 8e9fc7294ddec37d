"""How long work takes with replicas that may come."""

import pytest

from deployments.config import AutoscalingSettings, StageSettings
from serve_app.estimation.fleet import Fleet


def fleet(running: int | None, most: int = 4, startup_s: float = 100.0, target_work_s: float = 10.0) -> Fleet:
    scaling = AutoscalingSettings(max_replicas=most, startup_s=startup_s, target_work_s=target_work_s)
    return Fleet.of(StageSettings(autoscaling=scaling), lambda: running)


@pytest.mark.parametrize("running", [None, 1, 4])
def test_little_work_is_done_before_anybody_comes(running: int | None) -> None:
    assert fleet(running).seconds_for(50.0, 1.0) == 50.0


def test_much_work_is_shared_by_those_that_come() -> None:
    # 100 s alone, and what is left by four
    assert fleet(1).seconds_for(500.0, 1.0) == 100.0 + 400.0 / 4
    # a rate that was measured holds for each of them
    assert fleet(2).seconds_for(500.0, 1.0) == 100.0 + 400.0 / 2


def test_no_more_come_than_the_work_asks_for() -> None:
    assert fleet(1, most=100).seconds_for(120.0, 1.0) == 100.0 + 20.0 / 12


def test_a_stage_that_sleeps_has_to_wake_first() -> None:
    assert fleet(0).seconds_for(5.0, 1.0) == 105.0
    assert fleet(0).seconds_for(0.0, 1.0) == 100.0
    assert fleet(0).seconds_for(400.0, 1.0) == 100.0 + 400.0 / 4


def test_a_fixed_number_stays() -> None:
    fixed = Fleet.of(StageSettings(replicas=2), lambda: 2)
    assert fixed.seconds_for(500.0, 2.0) == 250.0
