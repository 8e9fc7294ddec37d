"""Every setting of the service: the `args:` of serve_config.yaml. Frozen, typed, unknown keys refused.

The catalogue's part is in model_settings.py, the keys' in access_settings.py, the webhooks' in webhook_settings.py, the
stages' in deployments/config.py. Nothing here touches a device, a disk or Ray: settings can be read and checked
anywhere. An error names the key's path.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deployments.config import ReplicaSettings, StagesSettings
from deployments.engine.checkpoints.spec import CheckpointSpec, Family
from deployments.engine.config import ControlnetSettings, DeviceName, LoraSettings, Section, UpscalerSettings
from deployments.engine.memory.limits import AllowedSizes, RequestSize
from serve_app.config.access import AccessSettings
from serve_app.config.models import SIZE_STEP, IntRange, ModelName, ModelSettings
from serve_app.config.webhooks import WebhookSettings
from serve_app.planning.prompt_filter import PromptFilter

OutputFormat = Literal["png", "jpeg", "webp"]
SafetyMode = Literal["block", "blur", "flag", "off"]
PreviewMode = Literal["blurred", "clear"]

# which entry of `stages` runs the checkpoints of which family
STAGE_OF_FAMILY: dict[Family, str] = {"sd15": "sd15", "sdxl": "sdxl_base", "sdxl-refiner": "sdxl_refiner"}


_DATABASES = ("sqlite+aiosqlite://", "postgresql+asyncpg://")
_IMAGE_PLACES = ("file://", "s3://", "gs://", "az://")


class ApplicationStages(StagesSettings):
    """The stages, and the router in front of them.

    router: the ingress deployment. One replica owns the jobs of one database; it needs no GPU.
    """

    router: ReplicaSettings = ReplicaSettings(num_cpus=0.1, max_ongoing_requests=1000)

    @model_validator(mode="after")
    def _router_needs_no_gpu(self) -> "ApplicationStages":
        if self.router.num_gpus:
            raise ValueError(f"router.num_gpus must be 0, not {self.router.num_gpus}: the router does no diffusion")
        return self


class SafetySettings(Section):
    """The layers against unsafe images.

    mode: what happens to a flagged image: "block" withholds it (the request's clean ones are still returned),
        "blur" returns it blurred beyond recognition, "flag" returns it marked, "off" doesn't look at all.
        A request may ask for a stricter mode, never for a weaker one.
    previews: what is seen of an image while it is drawn, before anything has judged it, where the mode is "block" or
        "blur": "blurred" beyond recognition, or "clear", which shows what may be withheld afterwards.
    threshold: score of the unsafe label from which an image is flagged.
    classifier: source of an image classifier with labels normal and nsfw: a folder, a hub id, "package:…".
    safety_checker: source of diffusers' StableDiffusionSafetyChecker as a further layer; None leaves it out.
    prompt_patterns: regular expressions (RE2's), case ignored; a prompt in which one is found is refused before
        anything is drawn.
    """

    mode: SafetyMode = "block"
    previews: PreviewMode = "blurred"
    threshold: float = Field(default=0.8, ge=0.0, le=1.0)
    classifier: str | None = Field(default="package:demo_models/demo-nsfw", min_length=1)
    safety_checker: str | None = Field(default=None, min_length=1)
    prompt_patterns: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = ()

    @model_validator(mode="after")
    def _layers(self) -> "SafetySettings":
        if self.mode != "off" and self.classifier is None and self.safety_checker is None:
            raise ValueError(
                f"mode {self.mode!r} needs a classifier or a safety_checker; to serve without, say mode: off"
            )
        PromptFilter(self.prompt_patterns)
        return self


class JobsSettings(Section):
    """The job store and how jobs are run.

    database_url: SQLAlchemy's async URL, of SQLite or Postgres. SQLite's path is relative to the directory the service
        starts in.
    max_queued: most jobs waiting or running at once; one more is refused with 503 and Retry-After.
    max_queued_s: most device seconds of work that may be unfinished, as predicted from what the stages took of late; a
        job that would be more is refused likewise. None is no bound; nor is there one before anything was drawn.
    max_queued_s_per_tenant: the same for each tenant's jobs; refused with 429.
    result_ttl_s: seconds that a finished job and its images are kept; 0 keeps them for ever.
    sweep_interval_s: seconds between two looks for expired jobs.
    orphan_interval_s: seconds between two looks through the whole image store for files that no job shows.
    heartbeat_s: seconds between two signs of life from the router for the jobs it runs.
    lease_s: seconds without a sign of life after which a job's owner counts as dead; above heartbeat_s.
    max_attempts: how often a job is started in all (again when its router dies under it); then it fails.
    stage_attempts: how often one stage of one image is tried in all, when replicas die under it.
    stage_retry_s: seconds that a stage without a live replica is waited for before the job fails.
    progress_interval_s: seconds between two writes of the running jobs' progress to the store, all in one transaction.
        Only who asks another router reads it there: the one that runs a job knows better.
    retry_window_s: how long the job of an OpenAI client whose connection was lost is kept for the client's own retry
        (its longest pause before one is 8 s); then it is cancelled. 0: at once, and a retry is a new job.
    state_every: UNet steps between two states of a lane that a stage tells its router, so that a lane whose replica is
        lost goes on from the newest on another; 0 for none: it begins anew. A state is 0.3 to 1.3 MB at 1024 x 1024.
    state_interval_s: seconds between two writes of the running jobs' newest states to the store, so that a job whose
        router dies goes on from them. A job that ends sooner is never written.
    state_max_bytes: most bytes of states that the store has of one job at a time; 0 keeps none there.
    """

    database_url: str = Field(default="sqlite+aiosqlite:///darkroom-data/jobs.db", min_length=1)
    max_queued: int = Field(default=100, ge=1, le=1_000_000)
    max_queued_s: float | None = Field(default=3_600.0, gt=0.0)
    max_queued_s_per_tenant: float | None = Field(default=None, gt=0.0)
    result_ttl_s: float = Field(default=7 * 86_400.0, ge=0.0)
    sweep_interval_s: float = Field(default=300.0, gt=0.0)
    orphan_interval_s: float = Field(default=21_600.0, ge=0.0)
    heartbeat_s: float = Field(default=5.0, gt=0.0, le=3_600.0)
    lease_s: float = Field(default=30.0, gt=0.0, le=86_400.0)
    max_attempts: int = Field(default=3, ge=1, le=100)
    stage_attempts: int = Field(default=5, ge=1, le=100)
    stage_retry_s: float = Field(default=120.0, gt=0.0, le=3_600.0)
    progress_interval_s: float = Field(default=1.0, ge=0.0, le=60.0)
    retry_window_s: float = Field(default=10.0, ge=0.0, le=120.0)
    state_every: int = Field(default=5, ge=0, le=1_000)
    state_interval_s: float = Field(default=10.0, gt=0.0, le=3_600.0)
    state_max_bytes: int = Field(default=16 << 20, ge=0, le=1 << 30)

    @model_validator(mode="after")
    def _database_is_known(self) -> "JobsSettings":
        if not self.database_url.startswith(_DATABASES):  # (a password may be in it: it isn't repeated)
            raise ValueError(f"database_url must begin with {' or '.join(_DATABASES)}")
        return self

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> "JobsSettings":
        if self.lease_s <= self.heartbeat_s:
            raise ValueError(f"lease_s ({self.lease_s:g}) must be above heartbeat_s ({self.heartbeat_s:g})")
        return self


class ImagesSettings(Section):
    """Where finished images are kept, and their formats.

    url: a folder, relative to the directory the service starts in, or a bucket ("s3://bucket/prefix", "gs://…",
        "az://…").
    min_free_bytes: what the disk of a folder must have left; with less, requests are refused.
    default_format: of a request that names none.
    jpeg_quality, webp_quality: 1..100.
    """

    url: str = Field(default="darkroom-data/images", min_length=1)
    min_free_bytes: int = Field(default=64 << 20, ge=0)
    default_format: OutputFormat = "png"
    jpeg_quality: int = Field(default=92, ge=1, le=100)
    webp_quality: int = Field(default=90, ge=1, le=100)

    def quality(self, output_format: OutputFormat) -> int:
        """Of an encoded image; PNG has none and ignores it."""
        return self.webp_quality if output_format == "webp" else self.jpeg_quality

    @model_validator(mode="after")
    def _place_is_known(self) -> "ImagesSettings":
        if "://" in self.url and not self.url.startswith(_IMAGE_PLACES):
            raise ValueError(f"url must be a folder or begin with {', '.join(_IMAGE_PLACES)}")
        return self


class LimitsSettings(Section):
    """What one request may ask of the front, whatever the model.

    prompt_chars: longest prompt, and longest negative prompt, in characters.
    max_n: most images of one request.
    max_body_bytes: longest request body; a longer one is refused while it is read.
    max_image_body_bytes: the same where a body may hold images.
    max_image_pixels: most pixels of an image that a request brings; it is looked at before anything is decoded.
    json_depth: deepest nesting of a JSON body.
    json_values: most values (of any depth) in a JSON body.
    default_timeout_s: seconds after which a request that names no timeout_s fails.
    max_timeout_s: largest timeout_s a request may name.
    max_wait_s: longest `Prefer: wait=N` that is honoured; more is cut to it.
    body_timeout_s: seconds within which a request's body must have arrived.
    event_heartbeat_s: seconds of silence on an event stream after which a comment keeps it open.
    max_event_streams: most event streams open at once on one router.
    """

    prompt_chars: int = Field(default=2_000, ge=1, le=100_000)
    max_n: int = Field(default=10, ge=1, le=1_000)
    max_body_bytes: int = Field(default=1 << 20, ge=1_024, le=1 << 30)
    max_image_body_bytes: int = Field(default=32 << 20, ge=1_024, le=1 << 30)
    max_image_pixels: int = Field(default=16 << 20, ge=64 * 64, le=1 << 28)
    json_depth: int = Field(default=16, ge=2, le=200)
    json_values: int = Field(default=10_000, ge=16, le=10_000_000)
    default_timeout_s: float = Field(default=600.0, gt=0.0, le=86_400.0)
    max_timeout_s: float = Field(default=3_600.0, gt=0.0, le=86_400.0)
    max_wait_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    body_timeout_s: float = Field(default=30.0, gt=0.0, le=3_600.0)
    event_heartbeat_s: float = Field(default=15.0, gt=0.0, le=3_600.0)
    max_event_streams: int = Field(default=500, ge=1, le=100_000)

    @model_validator(mode="after")
    def _default_within(self) -> "LimitsSettings":
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"default_timeout_s ({self.default_timeout_s:g}) is above max_timeout_s ({self.max_timeout_s:g})"
            )
        return self


class Settings(Section):
    """The application's arguments.

    device: "auto" applies the stages' GPU claims where the cluster has GPUs (logical ones count) and runs on
        the CPU elsewhere; "cuda" always claims, and a replica without CUDA refuses to start; "cpu" never
        claims.
    models: the catalogue, name -> model. A stage without a model isn't started.
    default_model: of a request that names none.
    loras: the LoRAs that requests may name. controlnets: the ControlNets. upscalers: the models that enlarge pictures.
    stages: claims, replicas and batches of every deployment.
    safety: the layers against unsafe images.
    jobs: the job store.
    images: the image store.
    limits: what one request may ask.
    access: API keys and their rates.
    webhooks: whom to call when a job has ended.
    """

    device: DeviceName = "auto"
    models: dict[ModelName, ModelSettings] = Field(min_length=1)
    default_model: ModelName
    loras: LoraSettings = LoraSettings()
    controlnets: ControlnetSettings = ControlnetSettings()
    upscalers: UpscalerSettings = UpscalerSettings()
    stages: ApplicationStages = ApplicationStages()
    safety: SafetySettings = SafetySettings()
    jobs: JobsSettings = JobsSettings()
    images: ImagesSettings = ImagesSettings()
    limits: LimitsSettings = LimitsSettings()
    access: AccessSettings = AccessSettings()
    webhooks: WebhookSettings = WebhookSettings()

    @model_validator(mode="after")
    def _names_hold(self) -> "Settings":
        default = self.models.get(self.default_model)
        if default is None:
            raise ValueError(f"default_model: no model {self.default_model!r}; models: {', '.join(self.models)}")
        if default.family == "sdxl-refiner":
            raise ValueError(f"default_model: {self.default_model!r} is a refiner, it can't start an image")
        if default.tenants is not None:
            raise ValueError(f"default_model: {self.default_model!r} isn't for everybody, it has tenants")
        for name, model in self.models.items():
            if model.tenants is not None and not self.access.keyed:
                raise ValueError(f"models.{name}.tenants: without API keys (access.keys_file) nobody has a tenant")
            if model.loras and self.loras.folder is None:
                raise ValueError(f"models.{name}.loras: there is no folder of LoRAs (loras.folder)")
            if model.refiner is None:
                continue
            refiner = self.models.get(model.refiner)
            if refiner is None:
                raise ValueError(f"models.{name}.refiner: no model {model.refiner!r}; models: {', '.join(self.models)}")
            if refiner.family != "sdxl-refiner":
                raise ValueError(
                    f"models.{name}.refiner: {model.refiner!r} is of family {refiner.family}, not sdxl-refiner"
                )
        for family, stage in STAGE_OF_FAMILY.items():
            for name in getattr(self.stages, stage).preload or ():
                if name not in self.models or self.models[name].family != family:
                    raise ValueError(f"stages.{stage}.preload: {name!r} is no model of family {family}")
        return self

    def checkpoints(self, family: Family) -> dict[str, CheckpointSpec]:
        """The catalogue of one denoising stage, in the settings' order."""
        return {name: model.checkpoint() for name, model in self.models.items() if model.family == family}

    def allowed_sizes(self, family: Family) -> dict[str, AllowedSizes]:
        """What may be asked of each checkpoint of a stage; of a refiner, by the models that it refines."""
        found = {}
        for name, model in self.models.items():
            asked = [one.limits for one in self.models.values() if one.refiner == name] or [model.limits]
            if model.family == family:
                smallest = RequestSize(
                    pixels=min(_side(limits.width) * _side(limits.height) for limits in asked),
                    guided=all(limits.guidance_scale.min > 1 for limits in asked),
                )
                largest = RequestSize(
                    pixels=max(limits.most_pixels for limits in asked),
                    guided=any(limits.guidance_scale.max > 1 for limits in asked),
                )
                found[name] = AllowedSizes(smallest, largest)
        return found

    def seen_by(self, tenant: str | None) -> "Settings":
        """These, with the models that the tenant may use; None is an admin, who may use all."""
        models = {
            name: model
            for name, model in self.models.items()
            if tenant is None or model.tenants is None or tenant in model.tenants
        }
        return self if len(models) == len(self.models) else self.model_copy(update={"models": models})

    def generating(self) -> dict[str, ModelSettings]:
        """The models that a request may name: all but refiners."""
        return {name: model for name, model in self.models.items() if model.family != "sdxl-refiner"}


def _side(allowed: IntRange) -> int:
    """The smallest that is a size."""
    return -(-allowed.min // SIZE_STEP) * SIZE_STEP
