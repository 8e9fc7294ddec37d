"""Settings of the deployments: resources, scaling, batching.

They are part of the application's own arguments and not of Serve's `deployments:` list, because Serve ignores unknown
keys there.
"""

from typing import Literal, get_args

from pydantic import Field, model_validator

from deployments.engine.config import DeviceSettings, EngineSettings, Section
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES

# their keys in `stages`
DenoisingStageName = Literal["sd15", "sdxl_base", "sdxl_refiner"]
DENOISING_STAGES: tuple[DenoisingStageName, ...] = get_args(DenoisingStageName)


def stage_of(name: FamilyName) -> DenoisingStageName:
    """The stage that runs a family's checkpoints: one for refiners, one for what may be refined, one for the rest."""
    family = FAMILIES[name]
    if family.refines:
        return "sdxl_refiner"
    return "sd15" if family.refined_by is None else "sdxl_base"


class AutoscalingSettings(Section):
    """How the number of replicas follows the load. Most names are Ray Serve's."""

    min_replicas: int = Field(default=1, ge=0, le=10_000)
    """Fewest replicas. 0 lets the last one stop; the next request then waits for a start."""
    max_replicas: int = Field(default=1, ge=1, le=10_000)
    """Most replicas."""
    initial_replicas: int | None = Field(default=None, ge=0, le=10_000, examples=[1])
    """Replicas at the start; min_replicas if left out."""
    target_work_s: float = Field(default=20.0, gt=0.0, le=86_400.0)
    """Denoising stages: device seconds of unfinished work for each replica, in all routers; about how long a burst
    takes once all replicas are there. More replicas are asked for where images would miss their deadlines."""
    target_ongoing_requests: float | None = Field(default=None, gt=0.0, le=10_000.0, examples=[8.0])
    """Requests in flight for each replica. Without it denoising stages go by target_work_s, all others aim at 8. For a
    denoising stage also those count that wait in the routers."""
    startup_s: float = Field(default=120.0, ge=0.0, le=86_400.0)
    """Seconds until a replica that was asked for works, its node's start included: for the times that clients hear of,
    and for how long a job waits for a stage that has lost its replicas (jobs.stage_retry_s)."""
    upscale_delay_s: float = Field(default=5.0, ge=0.0, le=86_400.0)
    """Seconds that a higher need must last before replicas are added."""
    downscale_delay_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    """Seconds that a lower need must last before replicas are stopped."""
    look_back_period_s: float = Field(default=15.0, gt=0.0, le=3_600.0)
    """Seconds over which the load is averaged; more than the 10 s between two of Serve's reports."""

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
    """Settings that every deployment has: its share of a node, its replicas, its timeouts."""

    num_gpus: float = Field(default=0.0, ge=0.0, le=1.0)
    """GPUs of one replica: 0 (the CPU), a fraction, or 1. A fraction also limits the process to that part of the GPU's
    memory. Ignored where the cluster has no GPU (see `device`)."""
    num_cpus: float = Field(default=0.1, ge=0.0, le=1024.0)
    """CPUs that Ray books for one replica; a booking, not a limit."""
    accelerator_type: str | None = Field(default=None, min_length=1, examples=["L4"])
    """Run only on nodes with this type of GPU, by Ray's name of it. Needs num_gpus above 0."""
    resources: dict[str, float] = Field(default_factory=dict, examples=[{"node:__internal_head__": 0.001}])
    """Custom Ray resources that one replica books, by name."""
    replicas: int = Field(default=1, ge=1, le=10_000)
    """Number of replicas; ignored with `autoscaling`."""
    autoscaling: AutoscalingSettings | None = Field(default=None, examples=[{"min_replicas": 0, "max_replicas": 4}])
    """Let the number of replicas follow the load; leave it out for a fixed number."""
    max_ongoing_requests: int = Field(default=256, ge=1, le=100_000)
    """Most requests that one replica works on at once; Serve queues further ones. Denoising stages take fewer images:
    about two full batches, the others wait in the routers."""
    graceful_shutdown_timeout_s: float = Field(default=3_660.0, ge=0.0, le=86_400.0)
    """Seconds that a stopping replica may use to finish its work. Keep it above the longest job."""
    health_check_period_s: float = Field(default=10.0, gt=0.0, le=3_600.0)
    """Seconds between two health checks of a replica."""
    health_check_timeout_s: float = Field(default=30.0, gt=0.0, le=3_600.0)
    """Seconds that a health check may take."""

    @model_validator(mode="after")
    def _accelerator_needs_claim(self) -> "ReplicaSettings":
        if self.accelerator_type is not None and self.num_gpus == 0:
            raise ValueError("accelerator_type needs num_gpus above 0")
        return self


class StageSettings(ReplicaSettings):
    """A denoising stage: SD15, SDXLBase or SDXLRefiner."""

    engine: EngineSettings = EngineSettings()
    """The step-batching engine of each replica."""
    preload: tuple[str, ...] | None = Field(default=None, examples=[["demo-sd15"]])
    """Checkpoints that a replica loads before it counts as healthy, at most engine.resident_checkpoints. Without it:
    the stage's first models, in the catalogue's order."""
    hand_over_after_s: float = Field(default=10.0, ge=0.0, le=86_400.0)
    """Seconds that a stopping replica continues its images; the rest is then handed over to other replicas, with its
    state. Above graceful_shutdown_timeout_s nothing is handed over."""

    @model_validator(mode="after")
    def _preload_fits(self) -> "StageSettings":
        if self.preload is not None and len(self.preload) > self.engine.resident_checkpoints:
            raise ValueError(
                f"preload names {len(self.preload)} checkpoints, "
                f"engine.resident_checkpoints is {self.engine.resident_checkpoints}"
            )
        return self


class TextEncoderSettings(ReplicaSettings):
    """The text encoder."""

    device: DeviceSettings = DeviceSettings()
    """The device of each replica."""
    max_batch: int | None = Field(default=None, ge=1, le=256, examples=[8])
    """Most texts in one encoder batch. Every batch is padded to it, so that an embedding doesn't depend on what else
    was encoded. Without it: 8 on a GPU, 1 on a CPU, where more at once isn't quicker."""
    batch_wait_s: float = Field(default=0.005, ge=0.0, le=1.0)
    """Seconds that a text waits for others to share its batch; none with a max_batch of 1."""
    burst_wait_s: float = Field(default=0.1, ge=0.0, le=10.0)
    """Seconds that a text waits for others if it arrived within this time after another. HTTP and the job store spread
    a burst out, and it would otherwise be encoded text by text."""
    cache_entries: int = Field(default=256, ge=0, le=1_000_000)
    """Embeddings cached per replica; the least recently used is dropped first. One takes 0.2 MB (SD 1.5) or 0.6 MB
    (SDXL) for each 75 tokens of text."""
    max_chunks: int = Field(default=8, ge=1, le=64)
    """Most chunks of 75 tokens in one text. Each chunk makes the attention of every step more expensive."""
    embeddings: str | None = Field(default=None, min_length=1, examples=["/srv/embeddings"])
    """Folder of textual inversions (.safetensors), on every node with a text encoder. Prompts name a file without its
    ending."""


class ClassifierSettings(ReplicaSettings):
    """The classifier of unsafe images."""

    device: DeviceSettings = DeviceSettings()
    """The device of each replica."""
    max_batch: int | None = Field(default=None, ge=1, le=256, examples=[8])
    """Most images in one batch. Without it: 8 on a GPU, 1 on a CPU, where more at once isn't quicker."""
    batch_wait_s: float = Field(default=0.005, ge=0.0, le=1.0)
    """Seconds that an image waits for others to share its batch; none with a max_batch of 1."""


class UpscalerStageSettings(ReplicaSettings):
    """The stage that enlarges images."""

    device: DeviceSettings = DeviceSettings()
    """The device of each replica."""
    max_batch: int = Field(default=4, ge=1, le=256)
    """Most tiles in one batch, of one image or several."""
    batch_wait_s: float = Field(default=0.005, ge=0.0, le=1.0)
    """Seconds that a tile waits for others to share its batch."""
    at_once: int = Field(default=4, ge=1, le=1024)
    """Images that one replica works on at once; others wait, by priority. Each takes three bytes of memory for a pixel
    of the model's output."""


class DetectorStageSettings(ReplicaSettings):
    """The stage that finds what stands in images."""

    device: DeviceSettings = DeviceSettings()
    """The device of each replica."""


class StagesSettings(Section):
    """Every stage of the application. A stage that no model needs isn't started."""

    text_encoder: TextEncoderSettings = TextEncoderSettings()
    """The text encoders of all families."""
    sd15: StageSettings = StageSettings()
    """The denoising stage of models that no refiner finishes: SD 1.5."""
    sdxl_base: StageSettings = StageSettings()
    """The denoising stage of SDXL base models."""
    sdxl_refiner: StageSettings = StageSettings()
    """The denoising stage of SDXL refiner models."""
    nsfw_classifier: ClassifierSettings = ClassifierSettings()
    """The safety classifier; not started with `safety.mode: off`."""
    upscaler: UpscalerStageSettings = UpscalerStageSettings()
    """The upscaler; not started without `upscalers.folder`."""
    detector: DetectorStageSettings = DetectorStageSettings()
    """The detector; not started without `detectors.folder`."""
