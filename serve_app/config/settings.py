"""Every setting of the service: the `args:` of serve_config.yaml.

The text under a field is its description in docs/configuration.md.
"""

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deployments.config import DENOISING_STAGES, DenoisingStageName, ReplicaSettings, StagesSettings, stage_of
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import (
    NO_LORAS,
    ConditioningSettings,
    ControlnetSettings,
    DetectorSettings,
    DeviceName,
    IpAdapterSettings,
    LoraSettings,
    Section,
    UpscalerSettings,
    VaesSettings,
)
from deployments.engine.families.registry import FAMILIES
from deployments.engine.memory.limits import AllowedSizes
from serve_app.config.access import AccessSettings
from serve_app.config.models import ModelAlias, ModelName, ModelSettings, allowed_sizes
from serve_app.config.provenance import ProvenanceSettings
from serve_app.config.webhooks import WebhookSettings
from serve_app.planning.prompt_filter import PromptFilter

OutputFormat = Literal["png", "jpeg", "webp"]
# "cpu-with-claims": of the whole application alone, whose claims it keeps
ApplicationDevice = Literal[DeviceName, "cpu-with-claims"]
SafetyMode = Literal["block", "blur", "flag", "off"]
PreviewMode = Literal["blurred", "clear"]
StageName = Literal["text_encoder", DenoisingStageName, "nsfw_classifier", "upscaler", "detector"]

_DATABASES = ("sqlite+aiosqlite://", "postgresql+asyncpg://")
_IMAGE_PLACES = ("file://", "s3://", "gs://", "az://")


class ApplicationStages(StagesSettings):
    """The stages, and the router in front of them."""

    router: ReplicaSettings = ReplicaSettings(num_cpus=0.1, max_ongoing_requests=1000)
    """The router, which serves HTTP. One replica owns the jobs of one database; it needs no GPU."""

    @model_validator(mode="after")
    def _router_needs_no_gpu(self) -> "ApplicationStages":
        if self.router.num_gpus:
            raise ValueError(f"router.num_gpus must be 0, not {self.router.num_gpus}: the router does no diffusion")
        return self


class SafetySettings(Section):
    """The layers against unsafe images."""

    mode: SafetyMode = "block"
    """What happens to a flagged image: "block" withholds it and returns the request's other images, "blur" returns it
    blurred beyond recognition, "flag" returns it marked, "off" checks nothing. A request may choose a stricter mode,
    never a weaker one."""
    previews: PreviewMode = "blurred"
    """How previews look where the mode is "block" or "blur", since nothing has judged them yet: "blurred" beyond
    recognition, or "clear"."""
    threshold: float = Field(default=0.8, ge=0.0, le=1.0)
    """Score of the unsafe label from which an image is flagged, 0 to 1."""
    classifier: str | None = Field(default="package:demo_models/demo-nsfw", min_length=1)
    """Source of an image classifier with the labels normal and nsfw: a folder, a hub id, or
    "package:<package>/<folder>"."""
    safety_checker: str | None = Field(default=None, min_length=1, examples=["CompVis/stable-diffusion-safety-checker"])
    """Source of diffusers' StableDiffusionSafetyChecker as a further layer."""
    prompt_patterns: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        default=(), examples=[["\\bgore\\b"]]
    )
    """Regular expressions (RE2, case ignored). A prompt that matches one is refused before anything is drawn."""

    @model_validator(mode="after")
    def _layers(self) -> "SafetySettings":
        if self.mode != "off" and self.classifier is None and self.safety_checker is None:
            raise ValueError(
                f"mode {self.mode!r} needs a classifier or a safety_checker; mode: off serves without a check"
            )
        PromptFilter(self.prompt_patterns)
        return self


class JobsSettings(Section):
    """The job database, and how jobs are run."""

    database_url: str = Field(default="sqlite+aiosqlite:///darkroom-data/jobs.db", min_length=1)
    """SQLAlchemy's async URL of an SQLite or Postgres database. SQLite's path is relative to the directory that the
    service starts in."""
    max_queued: int = Field(default=100, ge=1, le=1_000_000)
    """Most unfinished jobs; one more is refused with 503 and Retry-After."""
    max_queued_s: float | None = Field(default=3_600.0, gt=0.0)
    """Most seconds of unfinished work on the stages' devices, as predicted from recent jobs; a job beyond it is refused
    with 503 and Retry-After. null is no limit."""
    max_queued_s_per_tenant: float | None = Field(default=None, gt=0.0, examples=[600.0])
    """The same limit for the jobs of each tenant; a job beyond it is refused with 429."""
    result_ttl_s: float = Field(default=7 * 86_400.0, ge=0.0)
    """Seconds that a finished job and its images are kept; 0 keeps them forever."""
    sweep_interval_s: float = Field(default=300.0, gt=0.0)
    """Seconds between two searches for expired jobs."""
    orphan_interval_s: float = Field(default=21_600.0, ge=0.0)
    """Seconds between two searches of the image store for files that belong to no job."""
    heartbeat_s: float = Field(default=5.0, gt=0.0, le=3_600.0)
    """Seconds between two heartbeats of the router for the jobs that it runs."""
    lease_s: float = Field(default=30.0, gt=0.0, le=86_400.0)
    """Seconds without a heartbeat after which another router takes a job over. Must be above heartbeat_s."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Most starts of one job, counting those after its router died; then it fails."""
    stage_attempts: int = Field(default=5, ge=1, le=100)
    """Most attempts at one stage of one image, counting those after a replica died."""
    stage_retry_s: float = Field(default=120.0, gt=0.0, le=3_600.0)
    """Seconds to wait for a stage that has lost its replicas before the job fails, besides the stage's own
    autoscaling.startup_s."""
    progress_interval_s: float = Field(default=1.0, ge=0.0, le=60.0)
    """Seconds between two writes of the running jobs' progress to the database, where other routers read it."""
    retry_window_s: float = Field(default=10.0, ge=0.0, le=120.0)
    """Seconds that the job of an OpenAI client whose connection was lost waits for the client's own retry (its longest
    pause is 8 s); then it is cancelled. 0 cancels at once."""
    state_every: int = Field(default=5, ge=0, le=1_000)
    """UNet steps between two snapshots of an image that a stage sends to its router, so that another replica can
    continue it; 0 sends none. A snapshot is 0.3 to 1.3 MB at 1024 x 1024."""
    state_interval_s: float = Field(default=10.0, gt=0.0, le=3_600.0)
    """Seconds between two writes of the running jobs' newest snapshots to the database, so that another router can
    continue them."""
    state_max_bytes: int = Field(default=16 << 20, ge=0, le=1 << 30)
    """Most bytes of snapshots in the database for one job; 0 stores none."""

    @model_validator(mode="after")
    def _database_is_known(self) -> "JobsSettings":
        if not self.database_url.startswith(_DATABASES):  # not repeated: it may contain a password
            raise ValueError(f"database_url must begin with {' or '.join(_DATABASES)}")
        return self

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> "JobsSettings":
        if self.lease_s <= self.heartbeat_s:
            raise ValueError(f"lease_s ({self.lease_s:g}) must be above heartbeat_s ({self.heartbeat_s:g})")
        return self


class ImagesSettings(Section):
    """Where finished images are stored, and their formats."""

    url: str = Field(default="darkroom-data/images", min_length=1)
    """A folder, relative to the directory that the service starts in, or a bucket: "s3://bucket/prefix", "gs://…",
    "az://…"."""
    min_free_bytes: int = Field(default=64 << 20, ge=0)
    """Bytes that the folder's disk must have left; with less, requests are refused."""
    default_format: OutputFormat = "png"
    """Format of an image whose request names none."""
    jpeg_quality: int = Field(default=92, ge=1, le=100)
    """Quality of JPEG files, 1 to 100."""
    webp_quality: int = Field(default=90, ge=1, le=100)
    """Quality of WebP files, 1 to 100."""

    def quality(self, output_format: OutputFormat) -> int:
        """Quality of an encoded image; PNG ignores it."""
        return self.webp_quality if output_format == "webp" else self.jpeg_quality

    @model_validator(mode="after")
    def _place_is_known(self) -> "ImagesSettings":
        if "://" in self.url and not self.url.startswith(_IMAGE_PLACES):
            raise ValueError(f"url must be a folder or begin with {', '.join(_IMAGE_PLACES)}")
        return self


class LimitsSettings(Section):
    """Limits of one request, whatever its model."""

    prompt_chars: int = Field(default=2_000, ge=1, le=100_000)
    """Most characters of a prompt, and of a negative prompt."""
    max_n: int = Field(default=10, ge=1, le=1_000)
    """Most images of one request."""
    max_body_bytes: int = Field(default=1 << 20, ge=1_024, le=1 << 30)
    """Most bytes of a request body; a longer one is refused while it is read."""
    max_image_body_bytes: int = Field(default=32 << 20, ge=1_024, le=1 << 30)
    """Most bytes of a request body that may contain images."""
    max_image_pixels: int = Field(default=16 << 20, ge=64 * 64, le=1 << 28)
    """Most pixels of an image in a request, checked before it is decoded."""
    json_values: int = Field(default=10_000, ge=16, le=10_000_000)
    """Most values in a JSON body, at any depth."""
    default_timeout_s: float = Field(default=600.0, gt=0.0, le=86_400.0)
    """Seconds after which a request without timeout_s fails."""
    max_timeout_s: float = Field(default=3_600.0, gt=0.0, le=86_400.0)
    """Largest timeout_s of a request, in seconds."""
    max_wait_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    """Longest `Prefer: wait=N` in seconds; a larger N is reduced to it."""
    body_timeout_s: float = Field(default=30.0, gt=0.0, le=3_600.0)
    """Seconds within which a request body must arrive."""
    event_heartbeat_s: float = Field(default=15.0, gt=0.0, le=3_600.0)
    """Seconds of silence on an event stream before a comment is sent to keep it open."""
    max_event_streams: int = Field(default=500, ge=1, le=100_000)
    """Most open event streams of one router."""

    @model_validator(mode="after")
    def _default_within(self) -> "LimitsSettings":
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"default_timeout_s ({self.default_timeout_s:g}) is above max_timeout_s ({self.max_timeout_s:g})"
            )
        return self


class OpenAISettings(Section):
    """OpenAI's API."""

    aliases: dict[str, ModelName] = Field(default={}, examples=[{"dall-e-3": "mine"}])
    """Further names of models, by which OpenAI's clients may ask for them: alias -> model."""


class BatchesSettings(Section):
    """Batches of requests, and the files that clients upload for them."""

    in_flight: int = Field(default=16, ge=1, le=10_000)
    """Most requests of all batches that are unfinished jobs at a time, shared by the batches. They never fill more than
    half of what `jobs.max_queued`, `jobs.max_queued_s` and `jobs.max_queued_s_per_tenant` allow."""
    max_lines: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most requests of one batch."""
    max_line_bytes: int = Field(default=8 << 20, ge=1_024, le=1 << 30)
    """Most bytes of one line of an uploaded batch; pictures of edits are in their lines."""
    max_file_bytes: int = Field(default=200 << 20, ge=1_024, le=1 << 40)
    """Most bytes of an uploaded file."""
    max_files: int = Field(default=1_000, ge=1, le=1_000_000)
    """Most uploaded files of one tenant; one more is refused with 429."""
    max_stored_bytes: int = Field(default=2 << 30, ge=1_024, le=1 << 50)
    """Most bytes of uploaded files of one tenant; more are refused with 429."""
    max_unfinished: int = Field(default=20, ge=1, le=10_000)
    """Most unfinished batches of one tenant; one more is refused with 429."""
    poll_s: float = Field(default=1.0, gt=0.0, le=3_600.0)
    """Seconds between two searches of a router for batches that nobody works on. A batch's own router is known by
    `jobs.heartbeat_s` and `jobs.lease_s`, as a job's."""


class RegistrySettings(Section):
    """Changes of models at run time, which the job database keeps."""

    poll_s: float = Field(default=0.5, gt=0.0, le=2.0)
    """Seconds between two looks of a router at what others have changed."""
    folders: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), examples=[["/srv/models"]])
    """Folders that models may be added from at run time, on every node with a router, a text encoder or a denoising
    stage; without one none is added."""
    max_upload_bytes: int = Field(default=4 << 30, ge=0, le=1 << 40)
    """Most bytes of an uploaded file of weights; 0 takes none."""
    min_free_bytes: int = Field(default=1 << 30, ge=0, le=1 << 50)
    """Bytes that an upload, or a model of the hub, leaves free on the disk of its folder."""
    repositories: tuple[Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$")], ...] = Field(
        default=(), examples=[["stabilityai/*", "me/my-model"]]
    )
    """Repositories of the Hugging Face hub that models may be added from at run time: `owner/name`, where * stands for
    any characters. Without one none is."""
    max_download_bytes: int = Field(default=16 << 30, ge=0, le=1 << 44)
    """Most bytes of what such a model needs of its repository."""


class TracesSettings(Section):
    """Traces of jobs, by OpenTelemetry."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://", examples=["http://otel-collector:4318/v1/traces"])
    """URL of a collector that takes OTLP over HTTP. Without one nothing is traced. Headers that it wants, as a key,
    are in the environment variable OTEL_EXPORTER_OTLP_HEADERS of every node with a router."""
    sampled: float = Field(default=1.0, ge=0.0, le=1.0)
    """Fraction of the jobs that are traced; all routers choose the same ones."""


class PromptStyle(Section):
    """Texts that a style adds to prompts, as AUTOMATIC1111's styles do."""

    prompt: str = Field(default="", examples=["{prompt}, studio light"])
    """Added after the prompt, or put around it where it holds {prompt}."""
    negative_prompt: str = Field(default="", examples=["blurry"])
    """The same for the negative prompt."""

    def around_prompt(self, prompt: str) -> str:
        """A prompt with the style."""
        return _around(self.prompt, prompt)

    def around_negative(self, prompt: str) -> str:
        """A negative prompt with the style."""
        return _around(self.negative_prompt, prompt)


def _around(style: str, prompt: str) -> str:
    if "{prompt}" in style:
        return style.replace("{prompt}", prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


class A1111Settings(Section):
    """AUTOMATIC1111's API."""

    strict: bool = False
    """Whether what isn't here is refused: LoRAs, styles, upscalers, VAEs, face restoration. Without it such a request
    is drawn without them, as A1111 does, and the list warnings of its info says so."""
    styles: dict[str, PromptStyle] = Field(default={}, examples=[{"studio": {"prompt": "{prompt}, studio light"}}])
    """Styles that requests may name."""


class PromptSettings(Section):
    """How prompts are read."""

    comments: bool = False
    """Whether a # begins a comment in a prompt, which ends with its line: in the native API, on the page and on the
    command line. In AUTOMATIC1111's API it does, unless its client says enable_prompt_comments: false; in OpenAI's and
    Hugging Face's a # is text."""
    wildcards: str | None = Field(default=None, min_length=1, examples=["/srv/wildcards"])
    """Folder of wildcards for prompts with variants (dynamic_prompts), on every node with a router: text files of at
    most 1 MiB, a line for each value. __colours__ is a line of colours.txt."""


class Settings(Section):
    """The application's arguments: `applications[0].args` of serve_config.yaml."""

    device: ApplicationDevice = "auto"
    """Use of GPUs: "auto" applies the stages' num_gpus where the cluster has GPUs (logical ones count) and uses the CPU
    elsewhere. "cuda" always applies them, and a replica without CUDA fails to start. "cpu" never applies them.
    "cpu-with-claims" always applies them and computes on the CPU: it tries a cluster's placement and scaling where GPUs
    are logical. Its replicas compute in float32 with torch's own attention, and log what they replaced."""
    models: dict[ModelName, ModelSettings] = Field(min_length=1)
    """The catalogue: models by name. A stage that no model needs isn't started."""
    default_model: ModelName = Field(examples=["mine"])
    """Model of a request that names none."""
    aliases: dict[ModelName, ModelAlias] = Field(default={}, examples=[{"realistic": {"model": "mine"}}])
    """Further names of models, in every API. They may be changed at run time, as defaults and limits of models."""
    registry: RegistrySettings = RegistrySettings()
    """Changes of models at run time."""
    loras: LoraSettings = LoraSettings()
    """The LoRAs that requests may name."""
    controlnets: ControlnetSettings = ControlnetSettings()
    """The ControlNets that requests may name."""
    ip_adapters: IpAdapterSettings = IpAdapterSettings()
    """The IP-Adapters that requests may name."""
    vaes: VaesSettings = VaesSettings()
    """The VAEs that requests may name, in place of their model's own."""
    upscalers: UpscalerSettings = UpscalerSettings()
    """The models that enlarge images."""
    detectors: DetectorSettings = DetectorSettings()
    """The detectors that details of requests may name."""
    stages: ApplicationStages = ApplicationStages()
    """Resources, replicas and batches of every deployment."""
    safety: SafetySettings = SafetySettings()
    """The layers against unsafe images."""
    jobs: JobsSettings = JobsSettings()
    """The job database, and how jobs are run."""
    images: ImagesSettings = ImagesSettings()
    """Where finished images are stored, and their formats."""
    limits: LimitsSettings = LimitsSettings()
    """Limits of one request, whatever its model."""
    prompts: PromptSettings = PromptSettings()
    """How prompts are read."""
    a1111: A1111Settings = A1111Settings()
    """AUTOMATIC1111's API."""
    openai: OpenAISettings = OpenAISettings()
    """OpenAI's API."""
    batches: BatchesSettings = BatchesSettings()
    """Batches of requests."""
    provenance: ProvenanceSettings = ProvenanceSettings()
    """How images say that they were generated."""
    access: AccessSettings = AccessSettings()
    """API keys, rate limits and quotas."""
    webhooks: WebhookSettings = WebhookSettings()
    """Calls of a client's own server when its job has ended."""
    traces: TracesSettings = TracesSettings()
    """Traces of jobs."""

    @model_validator(mode="after")
    def _names_exist(self) -> "Settings":
        default = self.models.get(self.default_model)
        if default is None:
            raise ValueError(f"default_model: unknown model {self.default_model!r}; known: {', '.join(self.models)}")
        if default.refines:
            raise ValueError(f"default_model: {self.default_model!r} is a refiner, which can't draw an image by itself")
        if default.tenants is not None:
            raise ValueError(
                f"default_model: {self.default_model!r} is limited to some tenants; the default must be open to all"
            )
        if not default.serving:
            raise ValueError(f"default_model: {self.default_model!r} has serving: false; the default must serve")
        for name, model in self.models.items():
            if model.tenants is not None and not self.access.keyed:
                raise ValueError(f"models.{name}.tenants: needs API keys (access.keys_file or access.keys_env)")
            if model.loras and self.loras.folder is None:
                raise ValueError(f"models.{name}.loras: needs the folder of LoRAs, loras.folder")
            refined_by = FAMILIES[model.family].refined_by
            if model.refiner is None or refined_by is None:
                continue
            refiner = self.models.get(model.refiner)
            if refiner is None:
                raise ValueError(
                    f"models.{name}.refiner: unknown model {model.refiner!r}; known: {', '.join(self.models)}"
                )
            if refiner.family != refined_by.name:
                raise ValueError(
                    f"models.{name}.refiner: {model.refiner!r} is of family {refiner.family}, not {refined_by.name}"
                )
        for alias, of_alias in self.aliases.items():
            if alias in self.models:
                raise ValueError(f"aliases: {alias!r} is a model's own name")
            if of_alias.model not in self.generating():
                known = ", ".join(self.generating())
                raise ValueError(f"aliases.{alias}: unknown model {of_alias.model!r}; known: {known}")
        for alias, name in self.openai.aliases.items():
            if alias in self.models or alias in self.aliases:
                raise ValueError(f"openai.aliases: {alias!r} is a model's own name, or an alias in every API")
            if name not in self.generating():
                known = ", ".join(self.generating())
                raise ValueError(f"openai.aliases.{alias}: unknown model {name!r}; known: {known}")
        for stage in DENOISING_STAGES:
            families = [family for family in FAMILIES if stage_of(family) == stage]
            for name in getattr(self.stages, stage).preload or ():
                if name not in self.models or self.models[name].family not in families:
                    raise ValueError(
                        f"stages.{stage}.preload: {name!r} isn't a model of family {' or '.join(families)}"
                    )
        return self

    def started_stages(self) -> dict[StageName, ReplicaSettings]:
        """The stages that the models and the other settings need."""
        needed: dict[StageName, bool] = {
            "text_encoder": True,
            **{name: bool(self.checkpoints(name)) for name in DENOISING_STAGES},
            "nsfw_classifier": self.safety.mode != "off",
            "upscaler": self.upscalers.folder is not None,
            "detector": self.detectors.folder is not None,
        }
        return {name: getattr(self.stages, name) for name, is_needed in needed.items() if is_needed}

    def checkpoints(self, stage: DenoisingStageName) -> dict[str, CheckpointSpec]:
        """Checkpoints of one denoising stage, in the settings' order."""
        return {name: model.checkpoint() for name, model in self.models.items() if stage_of(model.family) == stage}

    @property
    def conditioning(self) -> ConditioningSettings:
        """The sections of all kinds of conditioning, and of VAEs."""
        return ConditioningSettings(**{field.name: getattr(self, field.name) for field in fields(ConditioningSettings)})

    def adapters(self, stage: DenoisingStageName) -> tuple[LoraSettings, ConditioningSettings]:
        """LoRAs, conditionings and VAEs of one denoising stage; the last alone if it only refines."""
        draws = any(stage_of(model.family) == stage for model in self.generating().values())
        return (self.loras, self.conditioning) if draws else (NO_LORAS, ConditioningSettings(vaes=self.vaes))

    def allowed_sizes(self, stage: DenoisingStageName) -> dict[str, AllowedSizes]:
        """Allowed sizes of each checkpoint of a stage. A refiner's are those of the models that it refines."""
        sizes = {}
        for name, model in self.models.items():
            refined = [base.limits for base in self.models.values() if base.refiner == name] or [model.limits]
            if stage_of(model.family) == stage:
                sizes[name] = allowed_sizes(refined)
        return sizes

    def default_sizes(self, stage: DenoisingStageName) -> dict[str, tuple[int, int]]:
        """Default width and height of each checkpoint of a stage. A refiner's are those of a model that it refines."""
        sizes = {}
        for name, model in self.models.items():
            defaults = next((base.defaults for base in self.models.values() if base.refiner == name), model.defaults)
            if stage_of(model.family) == stage:
                sizes[name] = defaults.width, defaults.height
        return sizes

    def seen_by(self, tenant: str | None) -> "Settings":
        """The settings with only the models that `tenant` may use, also by their aliases.

        None is an admin, who may use all that serve.
        """
        models = {
            name: model
            for name, model in self.models.items()
            if model.serves and (tenant is None or model.tenants is None or tenant in model.tenants)
        }
        models |= {alias: models[of.model] for alias, of in self.aliases.items() if of.model in models}
        return self if models == self.models else self.model_copy(update={"models": models})

    def generating(self) -> dict[str, ModelSettings]:
        """Models that a request may name: all but refiners."""
        return {name: model for name, model in self.models.items() if not model.refines}
