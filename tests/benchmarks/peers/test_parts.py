import pytest

from benchmarks.peers.parts import steps_of


def test_a_line_through_two_pictures() -> None:
    steps = steps_of(2, 5.0, 6, 9.0)
    assert (steps.step_s, steps.rest_s) == (pytest.approx(1.0), pytest.approx(3.0))
