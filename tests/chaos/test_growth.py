"""The soak's judgement, on series made up for it: a leak of a realistic size shows, noise alone doesn't."""

import random

import pytest

from tests.chaos.growth import COUNT, growth, rss_bound

# a soak of 30 minutes, settled after a quarter, sampled every ten seconds
TIMES = [10.0 * number for number in range(135)]
SEEDS = range(40)


def memory(seed: int, leak: float = 0.0, size: float = 520.0) -> list[float]:
    """MiB: what hangs on for a minute or so, and what doesn't. leak: MiB over all."""
    rng = random.Random(seed)
    drift = 0.0
    values = []
    for at in TIMES:
        drift = 0.85 * drift + rng.gauss(0, 1.2)
        values.append(size + drift + rng.gauss(0, 1.5) + leak * at / TIMES[-1])
    return values


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_within_the_bound_and_a_leak_is_not(seed: int) -> None:
    flat = growth(TIMES, memory(seed))
    assert flat.most < rss_bound(flat)
    # half a picture of 128 x 128 a job, a job a second
    leaking = growth(TIMES, memory(seed, leak=24 / 1024 * TIMES[-1]))
    assert leaking.most > rss_bound(leaking)


def test_the_bound_of_a_small_process_is_no_share_of_it() -> None:
    assert rss_bound(growth(TIMES, memory(1, size=80.0))) == 16.0
    assert rss_bound(growth(TIMES, memory(1, size=1000.0))) == pytest.approx(30, abs=0.5)


def test_what_goes_up_and_comes_down_again_is_flat() -> None:
    saw = growth(TIMES, [500.0 + at % 250 / 25 for at in TIMES])
    assert saw.most < rss_bound(saw)


def test_a_line_is_found_and_is_certain() -> None:
    line = growth(TIMES, [100 + 0.01 * at for at in TIMES])
    assert (line.line, line.error) == (pytest.approx(13.4), pytest.approx(0.0, abs=1e-6))


def test_what_can_not_be_told_counts_against_it() -> None:
    """Wild samples, none of which says that it grows."""
    rng = random.Random(1)
    wild = growth(TIMES, [500 + rng.gauss(0, 100) for _ in TIMES])
    assert wild.most > rss_bound(wild)


@pytest.mark.parametrize("seed", SEEDS)
def test_descriptors_come_and_go(seed: int) -> None:
    rng = random.Random(seed)
    busy = growth(TIMES, [60 + rng.randrange(12) for _ in TIMES])
    assert busy.last - busy.first <= COUNT
    # one for each client that hung up: some in a minute
    leaking = growth(TIMES, [60 + rng.randrange(12) + at / 60 for at in TIMES])
    assert leaking.last - leaking.first > COUNT
