"""How often one API key may ask: by requests, and by requests for images, wherever these come from."""

import math
import time

from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from serve_app.config.access import AccessSettings, limits_of
from serve_app.errors import TooManyRequests


class RateLimits:
    """How often one key may ask, counted in this process (a sliding window, two numbers a key)."""

    def __init__(self, settings: AccessSettings) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._limits = {
            "requests": limits_of(settings.requests),
            "generations": limits_of(settings.generations),
        }

    async def count(self, key_id: str, *, generation: bool) -> None:
        """Count a request. Raises TooManyRequests."""
        await self._count("requests", key_id)
        if generation:
            await self._count("generations", key_id)

    async def _count(self, what: str, key_id: str) -> None:
        for limit in self._limits[what]:
            if not await self._limiter.hit(limit, what, key_id):
                stats = await self._limiter.get_window_stats(limit, what, key_id)
                wait_s = max(1, math.ceil(stats.reset_time - time.time()))
                message = f"more than {limit} of this key's {what}: try again in {wait_s} s"
                raise TooManyRequests(message, retry_after_s=wait_s)
