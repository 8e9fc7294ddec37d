"""When requests arrive: open-loop Poisson schedules, drawn from a seed so that every contender gets the same. Pure."""

import random


def poisson_arrivals(rate: float, seconds: float, seed: int, limit: int = 10_000) -> tuple[float, ...]:
    """Seconds from the start at which requests arrive, in order, all below `seconds`; at most `limit` of them.

    rate: mean arrivals per second, above 0; the gaps between them are exponential.
    """
    if rate <= 0:
        raise ValueError(f"the rate must be above 0, not {rate:g}")
    draw = random.Random(seed)
    arrivals: list[float] = []
    now = draw.expovariate(rate)
    while now < seconds and len(arrivals) < limit:
        arrivals.append(now)
        now += draw.expovariate(rate)
    return tuple(arrivals)
