"""What every dialect does with a request: accept it as a job, look at it, cancel it."""

import asyncio
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.checkpoints.weight_folder import FolderContents
from deployments.engine.conditioning.controlnet_files import ControlnetFolder
from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.errors import (
    CheckpointError,
    DetectorRefused,
    InvalidRequest,
    LoraRefused,
    UpscalerRefused,
)
from deployments.engine.prompts.textual_inversion import EmbeddingFolder
from deployments.engine.upscaling.folder import UpscalerFolder
from deployments.engine.vae.folder import VaeFolder
from deployments.priority_semaphore import PrioritySemaphore
from serve_app.auth.caller import Caller, batch_caller, keyed_caller
from serve_app.auth.key_file import KeyRing
from serve_app.auth.rate_limits import RateLimits
from serve_app.batches.batch import LinePlace
from serve_app.config.settings import Settings
from serve_app.errors import StoreUnavailable, Unauthenticated, UnknownImage, UnknownJob
from serve_app.image_store.store import ImageName, ImageStore
from serve_app.images.decode import Source, content_type_of, decoded, picture_size, read_picture, read_source
from serve_app.images.infotext import texts_of
from serve_app.images.inpainting import canvas_of
from serve_app.images.steering import NO_STEERING, SteeringSources
from serve_app.images.stored_pictures import kept
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.jobs.db.outbox import Webhook
from serve_app.jobs.db.queue_limits import Demand, Quota
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.events import EventHub, Watch
from serve_app.jobs.job import Job
from serve_app.jobs.runner import JobRunner
from serve_app.observability.logs import get_logger
from serve_app.observability.metrics import FrontMetrics
from serve_app.planning.dynamic_prompts import with_chosen_texts
from serve_app.planning.plan import OperationPlan, plan_generation
from serve_app.planning.prompt_filter import PromptFilter
from serve_app.planning.resolve import DRAWN_SEEDS, resolve
from serve_app.planning.sizes import Size
from serve_app.planning.upscale import check_model_output, plan_upscale, resolve_upscale, upscaled_size
from serve_app.planning.wildcard_folder import WildcardFolder
from serve_app.provenance.content import definition
from serve_app.provenance.ingredients import UsedPicture, archives_of, used_pictures
from serve_app.provenance.signer import ImageSigner
from serve_app.provenance.watermark import ImageWatermark
from serve_app.registry.added_models import AddedModels
from serve_app.registry.entries import Author
from serve_app.registry.live_settings import LiveSettings
from serve_app.registry.weight_files import WeightFiles
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.resolved import ResolvedGeneration
from serve_app.schemas.upscale_request import LANCZOS, UpscaleRequest
from serve_app.schemas.validation import shown
from serve_app.stages.checks import StageChecks
from serve_app.webhooks.target import target_of

log = get_logger(__name__)

# what a refused client is told to wait where nobody knows better
_RETRY_S, _LONGEST_RETRY_S = 5, 120

# how long a DELETE waits for the lanes to leave (they do so at their next step) before it answers
_CANCEL_WAIT_S = 3.0

# how many requests' pictures are unpacked at the same time: each may take hundreds of MB
_PICTURES_AT_ONCE = 4

# classes of a detector that a refusal names
_SHOWN = 40

# of a model that is added
_FIRST_PROMPT, _FIRST_STEPS = "a house by a lake", 4

# how often the store is asked about a job that may run in another process
ELSEWHERE_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """The origin of a request.

    Attributes:
        caller: its sender.
        key: its Idempotency-Key: requests with the same one are one job.
        root: the path that the service is mounted at, for its webhook.
        line: of a batch that it is.
    """

    caller: Caller
    key: str | None = None
    root: str = ""
    line: LinePlace | None = None


class _Files(NamedTuple):
    """What is stored beside a job.

    Attributes:
        picture: that it begins with, as a PNG file.
        steering: as SteeringSources.stored returns them.
        ingredients: of the images' credentials, as archives_of returns them.
    """

    picture: bytes | None
    steering: Sequence[bytes] = ()
    ingredients: Sequence[bytes] = ()

    def __bool__(self) -> bool:
        return self.picture is not None or bool(self.steering)


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of the front that a dialect needs."""

    settings: Settings
    store: JobStore
    images: ImageStore
    runner: JobRunner
    checks: StageChecks
    hub: EventHub
    metrics: FrontMetrics
    prompt_filter: PromptFilter
    loras: LoraFolder
    controlnets: ControlnetFolder
    ip_adapters: IpAdapterFolder
    vaes: VaeFolder
    upscalers: UpscalerFolder
    detectors: DetectorFolder
    embeddings: EmbeddingFolder
    wildcards: WildcardFolder
    signer: ImageSigner | None
    watermark: ImageWatermark | None
    keys: KeyRing | None
    """None without keys."""
    rates: RateLimits
    live: LiveSettings
    """The settings as they are now, where those of models may differ from the configuration file's."""
    weights: WeightFiles
    """The files of weights that may be uploaded and removed."""
    added: AddedModels
    """The models that may be added and removed."""
    pictures: PrioritySemaphore = field(default_factory=lambda: PrioritySemaphore(_PICTURES_AT_ONCE))
    """At holding pictures that came with requests, unpacked."""

    def folders(self) -> Mapping[str, FolderContents]:
        """What the folders of weights offer, by the settings' names for them. Reads files."""
        return {
            "loras": self.loras.contents(),
            "controlnets": self.controlnets.contents(),
            "ip_adapters": self.ip_adapters.contents(),
            "vaes": self.vaes.contents(),
            "upscalers": self.upscalers.contents(),
            "detectors": self.detectors.contents(),
            "embeddings": self.embeddings.contents(),
        }

    def settings_for(self, caller: Caller) -> Settings:
        """The present settings, with the models that the caller may use."""
        return self.live.settings.seen_by(caller.sees)

    async def accept(
        self, request: GenerationRequest, origin: RequestOrigin, *, blank_prompt: bool = False
    ) -> tuple[Job, bool]:
        """Store a request as a job of its caller's tenant, and start it; `blank_prompt` as in `resolve`.

        Returns:
            The job, and whether the request had come before under its key.

        Raises:
            InvalidRequest and its branches, QueueFull, TooManyRequests, StoreUnavailable: Nothing was accepted.
            IdempotencyMismatch: The key was another request's.
            StaleLease: It is a line of a batch that isn't in progress any more.
        """
        if request.webhook_url is not None:
            target_of(request.webhook_url, self.settings.webhooks)
        masked = any(region.mask is not None for region in request.regions)
        pictured = request.image is not None or masked or bool(request.controlnets or request.references)
        async with self.pictures.acquire(0) if pictured else nullcontext():
            return await self._accept(request, origin, blank_prompt)

    async def _accept(self, request: GenerationRequest, origin: RequestOrigin, blank_prompt: bool) -> tuple[Job, bool]:
        max_pixels = self.settings.limits.max_image_pixels
        asked, drawn_seed = request, secrets.randbelow(DRAWN_SEEDS)
        if request.dynamic_prompts:
            wildcards = await asyncio.to_thread(self.wildcards.read)
            request = with_chosen_texts(request, drawn_seed, wildcards, self.settings.limits)
        source: Source | None = None
        if request.image is not None:
            source = await asyncio.to_thread(read_source, request.image, request.mask, max_pixels)
        steering = NO_STEERING
        if request.controlnets or request.references or request.regions:
            steering = await asyncio.to_thread(SteeringSources.read, request, source, self.ip_adapters, max_pixels)
        generation, shown_texts = resolve(
            request,
            self.settings_for(origin.caller),
            drawn_seed=drawn_seed,
            source=source,
            steering=steering,
            blank_prompt=blank_prompt,
        )
        for text in shown_texts:
            self.prompt_filter.check(text)
        own = (*generation.details, *(() if generation.hires is None else (generation.hires,)))
        if generation.loras or any(one.loras for one in (*own, *generation.regions)):
            await asyncio.to_thread(self._check_loras, generation)
        if generation.controlnets:
            await asyncio.to_thread(self._check_controlnets, generation)
        if generation.vae is not None:
            family = self.live.settings.models[generation.model].family
            await asyncio.to_thread(self.vaes.find_for, generation.vae, family)
        if generation.hires is not None and generation.hires.upscaler_model is not None:
            await asyncio.to_thread(self._check_hires, generation, generation.hires.upscaler_model)
        if generation.details:
            await asyncio.to_thread(self._check_details, generation)
        used = self._used_pictures(request)
        generation = generation.model_copy(update={"ingredients": len(used)})
        plan = plan_generation(generation, self.live.settings)
        await self.checks.check(plan)
        canvas: bytes | None = None
        if source is not None:
            canvas = await asyncio.to_thread(_canvas, source, generation)
        steering_files: list[bytes] = []
        if generation.steering_pictures:
            steering_files = await asyncio.to_thread(steering.stored, request, generation, source)
        ingredients = await asyncio.to_thread(archives_of, used) if used else []
        # pictures count by their bytes, however they were written
        body = asked.identity("image", "mask", "controlnets")
        sums = {control.model: control.sha256 for control in generation.controlnets}
        body["controlnets"] = [
            control.identity("image") | {"image": sums.get(control.model)} for control in asked.controlnets
        ]
        body["references"] = [reference.identity("patches", "channels") for reference in generation.references]
        body["regions"] = [region.identity() for region in generation.regions]
        if generation.image is not None:
            body |= {"image": generation.image.sha256, "mask": generation.image.mask_sha256}
        job, replayed = await self._store(plan, body, origin, _Files(canvas, steering_files, ingredients))
        if not replayed:
            log.info("job accepted", job_id=job.id, model=generation.model, n=generation.n, steps=generation.steps)
        return job, replayed

    async def draw_first(self, model: str, job_id: str, caller: Caller) -> Job:
        """Draw the first image of a model that is being added, as a job of this id. Raises as `accept` does."""
        settings = self.live.settings
        allowed = settings.models[model].limits.steps
        steps = min(max(_FIRST_STEPS, allowed.min), allowed.max)
        request = GenerationRequest(prompt=_FIRST_PROMPT, model=model, steps=steps)
        generation, _ = resolve(request, settings, drawn_seed=0)
        plan = plan_generation(generation, settings)
        await self.checks.check(plan)
        job, _ = await self._store(plan, {}, RequestOrigin(caller), _Files(None), job_id)
        return job

    async def draw_first_for(self, model: str, job_id: str, author: Author) -> Job:
        """As `draw_first`, for whoever added the model some time ago. Raises Unauthenticated, too."""
        return await self.draw_first(model, job_id, self.caller_of(author.tenant, author.key_id, job_id))

    def caller_of(self, tenant: str, key_id: str | None, request_id: str) -> Caller:
        """Whoever asked for something that is done later. Raises Unauthenticated: its key is gone."""
        if self.keys is None and key_id is None:
            return batch_caller(request_id)
        key = None if self.keys is None or key_id is None else self.keys.by_id(key_id)
        if key is None or key.tenant != tenant:
            raise Unauthenticated("the API key that asked for it is no longer valid")
        return keyed_caller(key, "", request_id)

    async def accept_upscale(self, request: UpscaleRequest, origin: RequestOrigin) -> tuple[Job, bool]:
        """Store a picture's enlargement as a job, and start it; as `accept` does it with a request for images."""
        if request.webhook_url is not None:
            target_of(request.webhook_url, self.settings.webhooks)
        max_pixels = self.settings.limits.max_image_pixels
        source = Size(*await asyncio.to_thread(picture_size, "image", request.image, max_pixels))
        own_scale: int | None = None
        if request.upscaler != LANCZOS:
            own_scale = (await asyncio.to_thread(self.upscalers.find, request.upscaler)).scale
        size = upscaled_size(request, source, own_scale, self.settings)  # what is refused needs no decoding
        async with self.pictures.acquire(0):
            picture = await asyncio.to_thread(read_picture, "image", request.image, max_pixels)
            source = Size(picture.width, picture.height)
            size = upscaled_size(request, source, own_scale, self.settings)
            texts = await asyncio.to_thread(texts_of, decoded("image", request.image))
            operation = resolve_upscale(
                request,
                self.settings,
                source=source,
                size=size,
                sha256=picture.sha256,
                parameters="" if texts is None else texts[0].encode(errors="replace").decode(),
            )
            used = self._used_pictures(request)
            operation = operation.model_copy(update={"ingredients": len(used)})
            ingredients = await asyncio.to_thread(archives_of, used) if used else []
            files = _Files(await asyncio.to_thread(kept, picture.pixels, "stretch", source), (), ingredients)
            body = request.identity("image") | {"operation": operation.operation, "image": picture.sha256}
            job, replayed = await self._store(plan_upscale(operation, self.settings.upscalers), body, origin, files)
        if not replayed:
            log.info("job accepted", job_id=job.id, upscaler=operation.upscaler, width=size.width, height=size.height)
        return job, replayed

    async def _store(
        self,
        plan: OperationPlan,
        body: Mapping[str, Any],
        origin: RequestOrigin,
        files: _Files,
        job_id: str | None = None,
    ) -> tuple[Job, bool]:
        """Store and start the job of a plan; returns it, and whether the request had come before.

        `body` tells the request from others with its key.
        """
        await self.images.check()  # what couldn't be kept need not be drawn
        job_id = job_id or self.store.new_id()
        await self._keep(job_id, files)  # before there is a job, which anybody may take up
        url = body.get("webhook_url")
        async with self.images.kept_for_row(job_id) if files else nullcontext():
            job, replayed = await self.store.create(
                plan.operation.model_dump(mode="json"),
                key=None if origin.key is None else RequestKey.named(origin.key, body),
                tenant=origin.caller.tenant,
                max_queued=self.settings.jobs.max_queued,
                demand=self._demand(plan, origin.caller),
                job_id=job_id,
                webhook=None if url is None else Webhook(url, origin.root),
                line=origin.line,
            )
        origin.caller.accepted.append(job.id)
        if replayed:
            if files:
                await self.images.discard(job_id)
            log.info("request came again", job_id=job.id, state=job.state.value)
            return job, True
        self.metrics.accepted()
        self.runner.start(job, plan, origin.caller.request_id)
        return job, False

    async def _keep(self, job_id: str, files: _Files) -> None:
        """All of them or none, also where the client goes meanwhile. Raises StoreUnavailable."""
        try:
            if files.picture is not None:
                await self.images.write_input(job_id, files.picture)
            for index, picture in enumerate(files.steering):
                await self.images.write_steering(job_id, index, picture)
            for index, ingredient in enumerate(files.ingredients):
                await self.images.write_ingredient(job_id, index, ingredient)
        except BaseException:
            await self.images.discard(job_id)
            raise

    async def credited(
        self, file: bytes, pictures: Sequence[UsedPicture], source_type: str, generation: Mapping[str, Any]
    ) -> bytes:
        """An image file that no job wrote, with its credentials where images are signed.

        Args:
            file: of the image.
            pictures: that it is made of; it begins with the first.
            source_type: IPTC's URI.
            generation: what made it, for the credentials.

        Raises:
            SignatureFailed: it couldn't be signed.
        """
        if self.signer is None:
            return file
        ingredients = await asyncio.to_thread(archives_of, pictures)
        kind = content_type_of("image", file)
        asserted = definition(kind, source_type, generation, began=bool(pictures), ingredients=len(ingredients))
        credited, _ = await self.signer.signed(file, kind, asserted, ingredients)
        return credited

    def _used_pictures(self, request: GenerationRequest | UpscaleRequest) -> tuple[UsedPicture, ...]:
        """The request's pictures that its images' credentials name; none where nothing is signed."""
        return () if self.signer is None else used_pictures(request)

    def _check_hires(self, generation: ResolvedGeneration, upscaler: str) -> None:
        """Raise InvalidRequest if the model that enlarges its first pass doesn't exist, or can't be used for it."""
        try:
            found = self.upscalers.find(upscaler)
        except UpscalerRefused as error:
            raise UpscalerRefused(error.message, "hires.upscaler") from None
        check_model_output(Size(generation.width, generation.height), found.scale, self.settings, "hires.upscaler")

    def _check_details(self, generation: ResolvedGeneration) -> None:
        """Raise DetectorRefused for a detector that doesn't exist or is broken, InvalidRequest for an unknown class."""
        for index, detail in enumerate(generation.details):
            field = f"details.{index}"
            try:
                known = self.detectors.find(detail.detector).classes
            except DetectorRefused as error:
                raise DetectorRefused(error.message, f"{field}.detector") from None
            unknown = [name for name in detail.classes if name not in known]
            if unknown:
                raise InvalidRequest(
                    f"{field}.classes names {shown(unknown[0])}; {detail.detector} finds {', '.join(known[:_SHOWN])}",
                    f"{field}.classes",
                )

    def _check_loras(self, generation: ResolvedGeneration) -> None:
        """Raise LoraRefused if one of its LoRAs doesn't exist, or isn't a complete safetensors file.

        For one in the model's settings CheckpointError, because the client can't do anything about it.
        """
        for index, region in enumerate(generation.regions):
            for lora in region.loras:
                try:
                    self.loras.find(lora.name)
                except LoraRefused as error:
                    raise LoraRefused(error.message, f"regions.{index}.loras") from None
        details = (lora for detail in generation.details for lora in detail.loras or ())
        passes = {generation.model: (*generation.loras, *details)}
        if generation.hires is not None and generation.hires.loras:
            second = generation.hires.model or generation.model
            passes[second] = (*passes.get(second, ()), *generation.hires.loras)
        for model, loras in passes.items():
            of_model = {lora.name for lora in self.live.settings.models[model].loras}
            for lora in loras:
                try:
                    self.loras.find(lora.name)
                except LoraRefused as error:
                    if lora.name not in of_model:
                        raise
                    raise CheckpointError(f"model {model!r} names a LoRA in its settings: {error}") from None

    def _check_controlnets(self, generation: ResolvedGeneration) -> None:
        """Raise ControlnetRefused if one of its ControlNets doesn't exist, is broken, or is for other models."""
        family = self.live.settings.models[generation.model].family
        for control in generation.controlnets:
            self.controlnets.find_for(control.model, family)

    async def wait(self, job: Job, timeout_s: float) -> Job:
        """The job as it is when it ends, or after `timeout_s`. Raises UnknownJob.

        While the database is away it counts as it was last known: it was accepted, and goes on.
        """
        with self.hub.watch(job.id) as watch:
            return await self._ended(await self._now(job), watch, timeout_s)

    async def cancel(self, job_id: str, tenant: str | None = None) -> Job:
        """Cancel a job, and wait a moment for its end.

        Raises UnknownJob, also for another tenant's (None: whosever it is).
        """
        with self.hub.watch(job_id) as watch:
            job = await self.store.cancel(job_id, tenant=tenant)
            self.runner.cancel(job_id)
            return await self._ended(job, watch, _CANCEL_WAIT_S)

    async def forget(self, job_id: str, tenant: str | None = None) -> None:
        """Delete a job that has ended, and its images.

        Raises:
            UnknownJob: also for another tenant's (None: whosever it is).
            InvalidRequest: it hasn't ended.
        """
        job = await self.store.get(job_id, tenant=tenant)
        if not job.state.terminal:
            raise InvalidRequest(f"the job is {job.state.value}, only one that has ended can be deleted", "job_id")
        await self.images.delete_job(job_id)  # before the job, as in jobs/retention.py
        await self.store.delete(job_id)

    async def image(self, name: ImageName, tenant: str | None) -> bytes:
        """An image's file. Raises UnknownImage, also for another tenant's (None: whosever it is)."""
        try:
            await self.store.get(name.job_id, tenant=tenant)
        except UnknownJob:
            raise UnknownImage("no such image") from None
        return await self.images.read(name)

    def _demand(self, plan: OperationPlan, caller: Caller) -> Demand:
        """What the job asks for, as far as it can be foreseen, and what bounds it."""
        forecast = self.runner.forecast(plan, caller.tenant)
        jobs, quotas = self.settings.jobs, self.settings.access.quotas
        return Demand(
            work_s=forecast.work_s,
            late_s=max(0.0, forecast.start_s - plan.operation.timeout_s),
            first_end_s=forecast.first_end_s,
            rate=forecast.rate,
            tenant_rate=forecast.tenant_rate,
            max_queued_s=jobs.max_queued_s,
            max_queued_s_per_tenant=jobs.max_queued_s_per_tenant,
            key_id=caller.key.id if caller.key is not None and quotas else None,
            quotas=tuple(Quota(one.amount, one.get_expiry()) for one in quotas),
        )

    async def _ended(self, job: Job, watch: Watch, timeout_s: float) -> Job:
        """The job at its end, or as it is after `timeout_s`; another process may be the one that ends it."""
        until = time.monotonic() + timeout_s
        while not job.state.terminal and (left := until - time.monotonic()) > 0:
            ended = await watch.end(min(left, ELSEWHERE_POLL_S))
            if ended is not None:
                return ended
            if not self.runner.runs(job.id):
                job = await self._now(job)
        return job if job.state.terminal else await self._now(job)

    async def _now(self, job: Job) -> Job:
        try:
            return await self.store.get(job.id)
        except StoreUnavailable as error:
            log.warning("how a job is isn't known now", job_id=job.id, cause=repr(error.__cause__))
            return job

    def retry_after_s(self) -> int:
        """Seconds after which a refused client may find a place in the queue."""
        first = self.runner.first_eta_s()
        return _RETRY_S if first is None else max(1, min(_LONGEST_RETRY_S, math.ceil(first)))


def _canvas(source: Source, generation: ResolvedGeneration) -> bytes:
    """What a generation that begins with a picture draws on, as it is kept. Raises InvalidRequest."""
    if generation.image is None:
        raise ValueError("a picture, and no word of it in its generation")
    return canvas_of(source, generation.image, generation.width, generation.height).to_png()
