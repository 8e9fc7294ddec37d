import numpy as np
import pytest

from benchmarks.arrivals import poisson_arrivals


def test_arrivals_are_ordered_within_the_time_and_the_same_for_a_seed() -> None:
    arrivals = poisson_arrivals(5.0, 20.0, seed=3)
    assert list(arrivals) == sorted(arrivals)
    assert arrivals[0] > 0
    assert arrivals[-1] < 20.0
    assert arrivals == poisson_arrivals(5.0, 20.0, seed=3)
    assert arrivals != poisson_arrivals(5.0, 20.0, seed=4)


def test_gaps_are_exponential() -> None:
    gaps = np.diff(poisson_arrivals(4.0, 2000.0, seed=1))
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() == pytest.approx(0.25, rel=0.05)
    assert (gaps > 0.25).mean() == pytest.approx(np.exp(-1), abs=0.02)


def test_the_count_is_bounded() -> None:
    assert len(poisson_arrivals(1000.0, 1000.0, seed=0, limit=50)) == 50
    with pytest.raises(ValueError, match="above 0"):
        poisson_arrivals(0.0, 1.0, seed=0)
