"""How fast work gets done, from how fast it was of late. Knows nothing of jobs, and no clock of its own."""

# how much of the rate the latest window of time makes up
_WEIGHT = 0.3
_WINDOW_S = 1.0

# how much of a mean the latest value makes up
_SHARE = 0.1


class Pace:
    """Work a second, while there was work. Of a stage: device seconds a second, about as many as replicas are busy."""

    def __init__(self) -> None:
        self._rate: float | None = None
        self._since: float | None = None
        self._done = 0.0
        self._elapsed = 0.0

    @property
    def rate(self) -> float | None:
        """None before anything was measured."""
        return self._rate

    def worked(self, work: float, now: float) -> None:
        """This much more is done by `now` (monotonic seconds)."""
        if self._since is None:
            self._since = now  # what came before the first report took an unknown time
            return
        self._done += work
        self._elapsed += now - self._since
        self._since = now
        if self._elapsed >= _WINDOW_S:
            rate = self._done / self._elapsed
            self._rate = rate if self._rate is None else (1 - _WEIGHT) * self._rate + _WEIGHT * rate
            self._done = self._elapsed = 0.0

    def idle(self) -> None:
        """Nothing is being done: the time until the next report doesn't count."""
        self._since = None


class Mean:
    """A mean of values, the latest ones counting most; 0 without any."""

    def __init__(self) -> None:
        self.value = 0.0
        self._number = 0

    def add(self, value: float) -> None:
        """One more."""
        self._number += 1
        self.value += max(_SHARE, 1 / self._number) * (value - self.value)
