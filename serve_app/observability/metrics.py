"""The router's metrics for Prometheus, by ray.serve.metrics: requests, jobs, webhooks."""

from collections.abc import Mapping

from ray.serve import metrics

from serve_app.jobs.states import JobState

_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
_RATIOS = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0]


class FrontMetrics:
    """The router's metrics; one object per process."""

    def __init__(self) -> None:
        self._accepted = metrics.Counter("darkroom_jobs_accepted", description="Jobs accepted.")
        self._refused = metrics.Counter(
            "darkroom_requests_refused",
            description="Requests answered with an error, by its code.",
            tag_keys=("code",),
        )
        self._ended = metrics.Counter("darkroom_jobs_ended", description="Jobs ended, by state.", tag_keys=("state",))
        self._failures = metrics.Counter(
            "darkroom_job_failures", description="Jobs that failed, by error code.", tag_keys=("code",)
        )
        self._images = metrics.Counter("darkroom_images_returned", description="Images that may be seen.")
        self._blocked = metrics.Counter("darkroom_images_blocked", description="Images withheld as unsafe.")
        self._queued = metrics.Gauge("darkroom_jobs_queued", description="Jobs that wait for their first step.")
        self._running = metrics.Gauge("darkroom_jobs_running", description="Jobs past their first step.")
        self._without_place = metrics.Gauge(
            "darkroom_lanes_without_place",
            description="Lanes that wait in front of a stage's replicas.",
            tag_keys=("stage",),
        )
        self._eta_error = metrics.Histogram(
            "darkroom_eta_error_ratio",
            description="How far a job's first estimate was from the time that it took, over that time.",
            boundaries=_RATIOS,
        )
        self._wait = metrics.Histogram(
            "darkroom_job_queue_wait_s",
            description="Seconds from a job's acceptance to its first step.",
            boundaries=_SECONDS,
        )
        self._seconds = metrics.Histogram(
            "darkroom_job_seconds",
            description="Seconds from a job's acceptance to its end, by state.",
            boundaries=_SECONDS,
            tag_keys=("state",),
        )
        self._saved = metrics.Counter(
            "darkroom_device_seconds_saved",
            description="Device seconds that jobs would still have taken when they were cancelled or out of time.",
            tag_keys=("reason",),
        )
        self._signatures = metrics.Counter(
            "darkroom_signatures",
            description="Images that were to be signed, by what came of it.",
            tag_keys=("outcome",),
        )
        self._certificate_s = metrics.Gauge(
            "darkroom_certificate_seconds_left", description="Seconds until the certificate that signs images expires."
        )
        self._webhooks = metrics.Counter(
            "darkroom_webhooks", description="Calls of webhooks, by what came of them.", tag_keys=("outcome",)
        )

    def accepted(self) -> None:
        """Count an accepted job."""
        self._accepted.inc()

    def refused(self, code: str) -> None:
        """Count a request that is answered with an error, by its code."""
        self._refused.inc(tags={"code": code})

    def ended(self, state: JobState, seconds: float, code: str | None) -> None:
        """Count an ended job; `code` is its error's, `seconds` are those since it was accepted."""
        self._ended.inc(tags={"state": state.value})
        self._seconds.observe(seconds, tags={"state": state.value})
        if code is not None:
            self._failures.inc(tags={"code": code})

    def images(self, returned: int, blocked: int) -> None:
        """Count a job's images."""
        if returned:
            self._images.inc(returned)
        if blocked:
            self._blocked.inc(blocked)

    def waited(self, seconds: float) -> None:
        """Record the seconds that a job waited for its first step."""
        self._wait.observe(seconds)

    def saved(self, device_seconds: float, reason: str) -> None:
        """Count the device seconds that a job saved by ending early; `reason` is an error code."""
        if device_seconds > 0:
            self._saved.inc(device_seconds, tags={"reason": reason})

    def depth(self, queued: int, running: int) -> None:
        """Set the numbers of waiting and running jobs of this process."""
        self._queued.set(queued)
        self._running.set(running)

    def without_place(self, lanes: Mapping[str, int]) -> None:
        """Set the numbers of lanes that this process keeps waiting for a place in each stage."""
        for stage, number in lanes.items():
            self._without_place.set(number, tags={"stage": stage})

    def estimated(self, eta_s: float, took_s: float) -> None:
        """Record how long a job was expected to take when it was accepted, and how long it took."""
        if took_s > 0:
            self._eta_error.observe(abs(eta_s - took_s) / took_s)

    def signature(self, outcome: str) -> None:
        """Count an image that was to be signed: signed or failed."""
        self._signatures.inc(tags={"outcome": outcome})

    def certificate(self, seconds_left: float) -> None:
        """Set the seconds until the certificate that signs images expires."""
        self._certificate_s.set(seconds_left)

    def webhook(self, outcome: str) -> None:
        """Count a call: delivered, failed (another attempt follows) or given_up."""
        self._webhooks.inc(tags={"outcome": outcome})
