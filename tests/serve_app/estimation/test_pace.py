"""The rate is that of late, and idle time doesn't count."""

import pytest

from serve_app.estimation.pace import Mean, Pace


def drawn(pace: Pace, seconds: float, rate: float, start: float) -> float:
    """Work for some seconds in steps of a tenth; the time at the end."""
    for tenth in range(1, round(seconds * 10) + 1):
        pace.worked(rate / 10, start + tenth / 10)
    return start + seconds


def test_nobody_knows_before_anything_was_done() -> None:
    pace = Pace()
    assert pace.rate is None
    pace.worked(50, 10.0)
    assert pace.rate is None


def test_a_steady_pace_is_found() -> None:
    pace = Pace()
    drawn(pace, 10, rate=200, start=5.0)
    assert pace.rate == pytest.approx(200, rel=0.05)


def test_a_change_of_pace_is_followed() -> None:
    pace = Pace()
    now = drawn(pace, 5, rate=100, start=0.0)
    drawn(pace, 20, rate=400, start=now)
    assert pace.rate == pytest.approx(400, rel=0.1)


def test_idle_time_does_not_count() -> None:
    pace = Pace()
    now = drawn(pace, 5, rate=100, start=0.0)
    pace.idle()
    drawn(pace, 5, rate=100, start=now + 3600)
    assert pace.rate == pytest.approx(100, rel=0.1)


def test_much_short_work_adds_up_to_a_measurement() -> None:
    """Each piece is shorter than what a rate is measured over, with idle time behind it."""
    pace = Pace()
    for piece in range(40):
        drawn(pace, 0.3, rate=100, start=60.0 * piece)
        pace.idle()
    assert pace.rate == pytest.approx(100, rel=0.01)


def test_a_mean_follows_its_values() -> None:
    mean = Mean()
    assert mean.value == 0.0
    mean.add(4.0)
    assert mean.value == 4.0
    for _ in range(100):
        mean.add(1.0)
    assert mean.value == pytest.approx(1.0, abs=0.01)
