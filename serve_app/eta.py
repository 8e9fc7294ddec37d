"""When will it be done? An estimate from how fast the service has been drawing of late.

Work is counted in pixel-steps: one UNet evaluation of one image times its pixels. Knows nothing of jobs.
"""

# how much of the rate the latest window of time makes up
_WEIGHT = 0.3
_WINDOW_S = 1.0


class Pace:
    """Pixel-steps a second over all lanes together, while there was work."""

    def __init__(self) -> None:
        self._rate: float | None = None
        self._since: float | None = None
        self._done = 0.0

    def worked(self, pixel_steps: float, now: float) -> None:
        """This much more is done by `now` (monotonic seconds)."""
        if self._since is None:
            self._since = now  # what came before the first report took an unknown time
            return
        self._done += pixel_steps
        elapsed = now - self._since
        if elapsed >= _WINDOW_S:
            rate = self._done / elapsed
            self._rate = rate if self._rate is None else (1 - _WEIGHT) * self._rate + _WEIGHT * rate
            self._since, self._done = now, 0.0

    def idle(self) -> None:
        """Nothing is being drawn: the time until the next report doesn't count."""
        self._since, self._done = None, 0.0

    def eta_s(self, pixel_steps: float) -> float | None:
        """Seconds for this much work; None before anything was measured."""
        return None if not self._rate else pixel_steps / self._rate
