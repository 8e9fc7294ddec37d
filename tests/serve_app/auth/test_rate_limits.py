"""How often a key may ask."""

import pytest

from serve_app.auth.rate_limits import RateLimits
from serve_app.config.access import AccessSettings
from serve_app.errors import TooManyRequests


async def test_each_key_is_counted_by_itself() -> None:
    limits = RateLimits(AccessSettings(requests="2/hour", generations=None))
    for key_id in ("a", "b", "a", "b"):
        await limits.count(key_id, generation=False)
    with pytest.raises(TooManyRequests) as caught:
        await limits.count("a", generation=False)
    assert 1 <= caught.value.retry_after_s <= 7_200
    assert str(caught.value.retry_after_s) in str(caught.value)


async def test_generations_have_limits_of_their_own() -> None:
    limits = RateLimits(AccessSettings(requests="100/hour", generations="1/hour; 2/day"))
    await limits.count("a", generation=True)
    with pytest.raises(TooManyRequests, match="generations"):
        await limits.count("a", generation=True)
    await limits.count("a", generation=False)


async def test_none_is_no_limit() -> None:
    limits = RateLimits(AccessSettings(requests=None, generations=None))
    for _ in range(1_000):
        await limits.count("a", generation=True)


def test_a_quota_of_device_seconds_is_one_of_minutes_at_least() -> None:
    assert [(one.amount, one.get_expiry()) for one in AccessSettings(gpu_seconds="600/hour; 5000/day").quotas] == [
        (600, 3_600),
        (5_000, 86_400),
    ]
    assert AccessSettings().quotas == []
    with pytest.raises(ValueError, match="the shortest window is a minute"):
        AccessSettings(gpu_seconds="5/second")
    with pytest.raises(ValueError, match="is not a rate limit"):
        AccessSettings(gpu_seconds="fast")


@pytest.mark.parametrize("text", ["", "fast", "10", "10/fortnight", "-1/second"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate limit"):
        AccessSettings(requests=text)
