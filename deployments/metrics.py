"""The stages' metrics for Prometheus, by ray.serve.metrics.

They must be created inside a replica, where Serve tags them with application, deployment and replica. Averages are
ratios of counters: rows per step is rate(darkroom_rows) / rate(darkroom_steps), lanes per step the same with
darkroom_lane_steps, the mean wait darkroom_queue_seconds / darkroom_lanes_finished.
"""

from ray.serve import metrics

from deployments.engine.stats import EngineStats

# field of EngineStats -> name and description of its counter
_COUNTERS = {
    "steps_total": ("darkroom_steps", "UNet steps, each of one batch of lanes."),
    "lane_steps_total": ("darkroom_lane_steps", "Steps summed over the lanes that took part."),
    "rows_total": ("darkroom_rows", "UNet rows that carried work."),
    "padded_rows_total": ("darkroom_padded_rows", "UNet rows that only filled a batch up to its bucket."),
    "step_seconds_total": ("darkroom_step_seconds", "Device seconds spent in steps."),
    "queue_seconds_total": ("darkroom_queue_seconds", "Seconds that lanes waited before their first step."),
    "decode_seconds_total": ("darkroom_decode_seconds", "Device seconds spent decoding latents."),
    "images_total": ("darkroom_images", "Images decoded."),
    "finished_total": ("darkroom_lanes_finished", "Lanes that ended with a result."),
    "resumed_steps_total": ("darkroom_resumed_steps", "Steps that lanes which went on from a state didn't take again."),
    "compiled_steps_total": ("darkroom_compiled_steps", "Steps that compiled forwards took."),
    "loads_total": ("darkroom_checkpoint_loads", "Checkpoints brought to the device."),
    "swaps_total": ("darkroom_checkpoint_swaps", "Those of them that came into the models of another one."),
    "load_seconds_total": ("darkroom_checkpoint_load_seconds", "Device seconds spent on both."),
}
_GAUGES = {
    "lanes_active": ("darkroom_lanes_active", "Lanes in the running batches."),
    "lanes_waiting": ("darkroom_lanes_waiting", "Lanes that wait for their first step."),
}
_WAIT_BOUNDARIES_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
_BATCH_BOUNDARIES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]


class EngineMetrics:
    """Metrics of a denoising stage."""

    def __init__(self) -> None:
        self._counters = {field: metrics.Counter(name, description=text) for field, (name, text) in _COUNTERS.items()}
        self._gauges = {field: metrics.Gauge(name, description=text) for field, (name, text) in _GAUGES.items()}
        self._resident = metrics.Gauge("darkroom_checkpoints_resident", description="Checkpoints in memory.")
        self._failures = metrics.Counter(
            "darkroom_failures", description="Lanes that failed, by error code.", tag_keys=("code",)
        )
        self._wait = metrics.Histogram(
            "darkroom_queue_wait_s",
            description="Seconds that a lane waited before its first step.",
            boundaries=_WAIT_BOUNDARIES_S,
        )
        self._counted: dict[str, float] = dict.fromkeys(_COUNTERS, 0)
        self._failed: dict[str, int] = {}

    def record(self, stats: EngineStats) -> None:
        """Bring the counters up to `stats`, which must be newer than the last."""
        for field, counter in self._counters.items():
            now = getattr(stats, field)
            if now > self._counted[field]:
                counter.inc(now - self._counted[field])
                self._counted[field] = now
        for field, gauge in self._gauges.items():
            gauge.set(getattr(stats, field))
        self._resident.set(len(stats.resident))
        for code, failed in stats.failures.items():
            before = self._failed.get(code, 0)
            if failed > before:
                self._failures.inc(failed - before, tags={"code": code})
                self._failed[code] = failed

    def waited(self, seconds: float) -> None:
        """Record the seconds that a lane waited before its first step."""
        self._wait.observe(seconds)


class EncoderMetrics:
    """Metrics of the text encoder."""

    def __init__(self) -> None:
        self._batches = metrics.Counter("darkroom_encoder_batches", description="Batches of texts encoded.")
        self._texts = metrics.Counter("darkroom_encoder_texts", description="Texts encoded.")
        self._hits = metrics.Counter(
            "darkroom_encoder_cache_hits", description="Texts that were in the cache or on their way already."
        )
        self._size = metrics.Histogram(
            "darkroom_encoder_texts_per_batch", description="Texts per batch.", boundaries=_BATCH_BOUNDARIES
        )

    def batch(self, texts: int) -> None:
        """Count a batch of encoded texts."""
        self._batches.inc()
        self._texts.inc(texts)
        self._size.observe(texts)

    def hit(self) -> None:
        """Count a text that was cached or being encoded already."""
        self._hits.inc()


class ClassifierMetrics:
    """Metrics of the classifier of unsafe images."""

    def __init__(self) -> None:
        self._batches = metrics.Counter("darkroom_classifier_batches", description="Batches of images judged.")
        self._images = metrics.Counter("darkroom_classifier_images", description="Images judged.")
        self._flagged = metrics.Counter("darkroom_images_flagged", description="Images judged unsafe.")

    def batch(self, images: int, flagged: int) -> None:
        """Count a batch of images that were judged, `flagged` of them unsafe."""
        if not images:
            return
        self._batches.inc()
        self._images.inc(images)
        if flagged:
            self._flagged.inc(flagged)


class UpscalerMetrics:
    """Metrics of the upscaler."""

    def __init__(self) -> None:
        self._batches = metrics.Counter("darkroom_upscaler_batches", description="Batches of tiles enlarged.")
        self._tiles = metrics.Counter("darkroom_upscaler_tiles", description="Tiles enlarged.")

    def batch(self, tiles: int) -> None:
        """Count a batch of enlarged tiles."""
        if not tiles:
            return
        self._batches.inc()
        self._tiles.inc(tiles)
