"""Settings of the deployments: claims, scaling, batching. Frozen; unknown keys are refused.

They stand in the application's own arguments and not in Serve's `deployments:` list, because Serve drops keys
there that it doesn't know. No torch and no Ray here, so that anything can read them.
"""

from pydantic import Field, model_validator

from deployments.engine.config import DeviceSettings, EngineSettings, Section


class AutoscalingSettings(Section):
    """How the replicas of one deployment follow the load; the names are Ray Serve's.

    min_replicas: 0 lets the deployment leave altogether (the next request waits for a start).
    max_replicas: never more than this.
    initial_replicas: at deployment; None starts with min_replicas.
    target_ongoing_requests: requests in flight per replica that the autoscaler aims at. For a denoising stage
        about the lanes of one full batch (max_rows / 2 with guidance).
    upscale_delay_s, downscale_delay_s: seconds that a higher or lower need must last before it is acted on.
    look_back_period_s: seconds over which the load is averaged; Serve wants more than its interval between two
        reports (10 s).
    """

    min_replicas: int = Field(default=1, ge=0, le=10_000)
    max_replicas: int = Field(default=1, ge=1, le=10_000)
    initial_replicas: int | None = Field(default=None, ge=0, le=10_000)
    target_ongoing_requests: float = Field(default=8.0, gt=0.0, le=10_000.0)
    upscale_delay_s: float = Field(default=5.0, ge=0.0, le=86_400.0)
    downscale_delay_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    look_back_period_s: float = Field(default=15.0, gt=0.0, le=3_600.0)

    @model_validator(mode="after")
    def _ordered(self) -> "AutoscalingSettings":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        if self.initial_replicas is not None and not self.min_replicas <= self.initial_replicas <= self.max_replicas:
            raise ValueError(
                f"initial_replicas ({self.initial_replicas}) is outside "
                f"min_replicas..max_replicas ({self.min_replicas}..{self.max_replicas})"
            )
        return self


class ReplicaSettings(Section):
    """What every deployment has: its share of a node, its replicas, its patience.

    num_gpus: the claim of one replica: 0 (the CPU), a fraction of a GPU, or 1. A fraction is also the hard
        cap of the replica's process on that GPU's memory. A process drives one device, so more than 1 is
        refused. Applied only where the cluster has GPUs (see `device` of the application's settings).
    num_cpus: CPUs that Ray books for one replica; a booking, not a limit.
    accelerator_type: only nodes with this GPU ("L4", "A100", …), as Ray names it.
    resources: custom resources of Ray that one replica books; {"node:__internal_head__": 0.001} puts it on the
        head node.
    replicas: a fixed number of replicas; unused with `autoscaling`.
    autoscaling: let the number of replicas follow the load.
    max_ongoing_requests: requests that one replica takes before Serve holds further ones back.
    graceful_shutdown_timeout_s: seconds that a replica which must go may use to finish what it has; keep it
        above the longest job.
    health_check_period_s, health_check_timeout_s: how often Serve asks a replica for its health, and how long
        it waits for the answer.
    """

    num_gpus: float = Field(default=0.0, ge=0.0, le=1.0)
    num_cpus: float = Field(default=0.1, ge=0.0, le=1024.0)
    accelerator_type: str | None = Field(default=None, min_length=1)
    resources: dict[str, float] = Field(default_factory=dict)
    replicas: int = Field(default=1, ge=1, le=10_000)
    autoscaling: AutoscalingSettings | None = None
    max_ongoing_requests: int = Field(default=256, ge=1, le=100_000)
    graceful_shutdown_timeout_s: float = Field(default=3_660.0, ge=0.0, le=86_400.0)
    health_check_period_s: float = Field(default=10.0, gt=0.0, le=3_600.0)
    health_check_timeout_s: float = Field(default=30.0, gt=0.0, le=3_600.0)

    @model_validator(mode="after")
    def _accelerator_needs_claim(self) -> "ReplicaSettings":
        if self.accelerator_type is not None and self.num_gpus == 0:
            raise ValueError("accelerator_type needs num_gpus above 0")
        return self


class StageSettings(ReplicaSettings):
    """A denoising stage: SD15, SDXLBase, SDXLRefiner.

    engine: the step-batching engine of each replica.
    preload: checkpoints that a replica loads before it calls itself healthy; None takes the first
        `engine.resident_checkpoints` of the stage's part of the catalogue, in its order.
    hand_over_after_s: seconds that a replica which must go lets its lanes go on; the rest is handed over to other
        replicas, lanes that have begun with their state. Above graceful_shutdown_timeout_s it never comes to that.
    """

    engine: EngineSettings = EngineSettings()
    preload: tuple[str, ...] | None = None
    hand_over_after_s: float = Field(default=10.0, ge=0.0, le=86_400.0)

    @model_validator(mode="after")
    def _preload_fits(self) -> "StageSettings":
        if self.preload is not None and len(self.preload) > self.engine.resident_checkpoints:
            raise ValueError(
                f"preload names {len(self.preload)} checkpoints, "
                f"engine.resident_checkpoints is {self.engine.resident_checkpoints}"
            )
        return self


class TextEncoderSettings(ReplicaSettings):
    """The text encoder.

    device: of each replica's device thread.
    max_batch: most texts in one encoder batch; every batch is padded to it, so that an embedding's bits don't
        depend on what else was encoded.
    batch_wait_s: seconds that a text waits for others to share its batch.
    burst_wait_s: the same for a text that comes within this time after another: a burst reaches the encoder
        spread out by HTTP and the job store, and would be encoded one text at a time. A lone text never waits so long.
    cache_entries: embeddings kept per replica, the least recently used leaves first; one is 0.2 MB (SD1.5) or
        0.6 MB (SDXL) for each 75 tokens of its text.
    max_chunks: most chunks of 75 tokens that one text may take. Attention to the text grows with them at each step.
    embeddings: a folder of textual inversions (.safetensors), on every node with a replica; prompts call them by their
        files' names. None for none.
    """

    device: DeviceSettings = DeviceSettings()
    max_batch: int = Field(default=8, ge=1, le=256)
    batch_wait_s: float = Field(default=0.005, ge=0.0, le=1.0)
    burst_wait_s: float = Field(default=0.1, ge=0.0, le=10.0)
    cache_entries: int = Field(default=256, ge=0, le=1_000_000)
    max_chunks: int = Field(default=8, ge=1, le=64)
    embeddings: str | None = Field(default=None, min_length=1)


class ClassifierSettings(ReplicaSettings):
    """The classifier of unsafe images.

    device: of each replica's device thread.
    max_batch: most images in one batch.
    batch_wait_s: seconds that an image waits for others to share its batch.
    """

    device: DeviceSettings = DeviceSettings()
    max_batch: int = Field(default=8, ge=1, le=256)
    batch_wait_s: float = Field(default=0.005, ge=0.0, le=1.0)


class UpscalerStageSettings(ReplicaSettings):
    """The stage whose models enlarge pictures; started where `upscalers.folder` is set.

    device: of each replica's device thread.
    max_batch: most tiles in one batch, of one picture or of several.
    batch_wait_s: seconds that a tile waits for others to share its batch.
    at_once: pictures that one replica works on at a time; others wait, the more important ones before. Each takes
        three bytes for a pixel of what the model makes of it.
    """

    device: DeviceSettings = DeviceSettings()
    max_batch: int = Field(default=4, ge=1, le=256)
    batch_wait_s: float = Field(default=0.005, ge=0.0, le=1.0)
    at_once: int = Field(default=4, ge=1, le=1024)


class StagesSettings(Section):
    """Every stage of the application. One that the catalogue has no model for, and an upscaler without a folder, isn't
    started.
    """

    text_encoder: TextEncoderSettings = TextEncoderSettings()
    sd15: StageSettings = StageSettings()
    sdxl_base: StageSettings = StageSettings()
    sdxl_refiner: StageSettings = StageSettings()
    nsfw_classifier: ClassifierSettings = ClassifierSettings()
    upscaler: UpscalerStageSettings = UpscalerStageSettings()
