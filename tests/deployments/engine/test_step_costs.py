"""Whether padding pays is measured, remembered, and looked at again."""

from deployments.engine.step_costs import StepCosts


def known(padded: float, half: float) -> StepCosts[str]:
    costs: StepCosts[str] = StepCosts()
    for _ in range(3):
        costs.record("shape", 16, padded)
        costs.record("shape", 8, half)
    return costs


def test_what_is_unknown_is_tried() -> None:
    costs: StepCosts[str] = StepCosts()
    assert not costs.cutting_pays("shape", 10, 16)
    for _ in range(3):
        costs.record("shape", 16, 1.6)
    assert costs.cutting_pays("shape", 10, 16)
    assert not costs.cutting_pays("another shape", 10, 16)


def test_the_cheaper_way_per_row_wins() -> None:
    assert known(padded=1.6, half=0.8).cutting_pays("shape", 10, 16)
    assert not known(padded=1.0, half=0.8).cutting_pays("shape", 10, 16)
    assert not known(padded=1.6, half=0.8).cutting_pays("shape", 16, 16)


def test_a_slow_first_step_is_not_believed() -> None:
    costs = known(padded=1.0, half=0.9)
    costs.record("shape", 16, 50.0)
    assert not costs.cutting_pays("shape", 15, 16)


def test_padding_is_looked_at_again() -> None:
    costs = known(padded=1.6, half=0.8)
    decisions = [costs.cutting_pays("shape", 10, 16) for _ in range(128)]
    assert decisions.count(False) == 2


def test_only_so_many_shapes_are_remembered() -> None:
    costs: StepCosts[int] = StepCosts()
    for shape in range(1000):
        for _ in range(3):
            costs.record(shape, 16, 1.6)
    assert not costs.cutting_pays(0, 10, 16)
    assert costs.cutting_pays(999, 10, 16)
