"""The estimate follows the pace of late, and idle time doesn't count."""

import pytest

from serve_app.eta import Pace


def drawn(pace: Pace, seconds: float, rate: float, start: float) -> float:
    """Work for some seconds in steps of a tenth; the time at the end."""
    for tenth in range(1, round(seconds * 10) + 1):
        pace.worked(rate / 10, start + tenth / 10)
    return start + seconds


def test_nobody_knows_before_anything_was_drawn() -> None:
    pace = Pace()
    assert pace.eta_s(100) is None
    pace.worked(50, 10.0)
    assert pace.eta_s(100) is None


def test_a_steady_pace_is_found() -> None:
    pace = Pace()
    drawn(pace, 10, rate=200, start=5.0)
    assert pace.eta_s(1000) == pytest.approx(5.0, rel=0.05)


def test_a_change_of_pace_is_followed() -> None:
    pace = Pace()
    now = drawn(pace, 5, rate=100, start=0.0)
    drawn(pace, 20, rate=400, start=now)
    assert pace.eta_s(400) == pytest.approx(1.0, rel=0.1)


def test_idle_time_does_not_count() -> None:
    pace = Pace()
    now = drawn(pace, 5, rate=100, start=0.0)
    pace.idle()
    drawn(pace, 5, rate=100, start=now + 3600)
    assert pace.eta_s(100) == pytest.approx(1.0, rel=0.1)
