"""A whole front in one process: the real application, store, images and runner over stand-in stages."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.conditioning.controlnet_files import ControlnetFolder
from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.prompts.textual_inversion import EmbeddingFolder
from deployments.engine.upscaling.folder import UpscalerFolder
from deployments.engine.vae.folder import VaeFolder
from serve_app.api import outcome
from serve_app.api.app import build_application
from serve_app.api.openai.batch_lines import OpenAIBatches
from serve_app.api.service import Service
from serve_app.auth.key_file import KeyRing
from serve_app.auth.rate_limits import RateLimits
from serve_app.batches.driver import BatchDriver
from serve_app.batches.matrix_lines import MatrixBatches
from serve_app.config.settings import Settings
from serve_app.estimation.cost_model import CostModel
from serve_app.image_store.store import ImageStore
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.events import EventHub
from serve_app.jobs.job import Job
from serve_app.jobs.maintenance import Maintenance
from serve_app.jobs.runner import JobRunner
from serve_app.jobs.states import JobState
from serve_app.observability.metrics import FrontMetrics
from serve_app.observability.traces import JobTraces
from serve_app.planning.prompt_filter import PromptFilter
from serve_app.planning.wildcard_folder import WildcardFolder
from serve_app.provenance.signer import ImageSigner
from serve_app.provenance.watermark import ImageWatermark
from serve_app.registry.added_models import AddedModels
from serve_app.registry.live_settings import LiveSettings
from serve_app.registry.weight_files import WeightFiles
from serve_app.stages.checks import StageChecks
from serve_app.stages.client import StageCalls, Stages
from serve_app.stages.readiness import StageState
from serve_app.webhooks.delivery import WebhookDelivery, webhook_body
from tests.serve_app.stand_in_stages import (
    StandInClassifier,
    StandInDenoiser,
    StandInDetector,
    StandInEncoder,
    StandInUpscaler,
)

JSON = {"content-type": "application/json"}


def handle_of(cls: type, name: str, *arguments: object) -> DeploymentHandle[Any]:
    """A deployment of `cls` in this process, without a cluster."""
    app = serve.deployment(cls).options(name=name).bind(*arguments)
    return serve.run(app, name=name, _local_testing_mode=True)


def stand_ins() -> Stages:
    return Stages(
        text_encoder=handle_of(StandInEncoder, "TextEncoder"),
        denoisers={
            "sd15": handle_of(StandInDenoiser, "SD15"),
            "sdxl_base": handle_of(StandInDenoiser, "SDXLBase"),
            "sdxl_refiner": handle_of(StandInDenoiser, "SDXLRefiner"),
        },
        classifier=handle_of(StandInClassifier, "NSFWClassifier"),
        upscaler=handle_of(StandInUpscaler, "Upscaler"),
        detector=handle_of(StandInDetector, "Detector"),
    )


@dataclass(frozen=True)
class Front:
    service: Service
    maintenance: Maintenance
    webhooks: WebhookDelivery
    batches: BatchDriver
    app: FastAPI
    http: httpx.AsyncClient

    async def generate(self, prompt: str = "a red circle", wait: int | None = 30, **fields: Any) -> httpx.Response:
        headers = {} if wait is None else {"prefer": f"wait={wait}"}
        return await self.http.post("/generate", json={"prompt": prompt, **fields}, headers=headers)

    async def newest(self) -> Job:
        """The job that was accepted last."""
        return (await self.service.store.page(tenant=None, limit=1)).jobs[0]

    async def cancelled(self) -> None:
        """Wait until the last job was given up; fails if it ended in another way."""
        runner = self.service.runner
        await until(lambda: runner.depth() == (0, 0) and not outcome._clearing)
        assert (await self.newest()).state is JobState.CANCELLED

    async def goes_with_its_client(self, request: Coroutine[Any, Any, object]) -> None:
        """A client that hangs up takes its job along. request: one that would never be answered."""
        asking = asyncio.create_task(request)
        await until(lambda: sum(self.service.runner.depth()) == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await self.cancelled()

    async def events(self, job_id: str) -> list[tuple[str, Any]]:
        response = await self.http.get(f"/jobs/{job_id}/events")
        assert response.status_code == 200, response.text
        found = []
        for block in response.text.split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found


@asynccontextmanager
async def front(
    settings: Settings, stages: Stages, states: Mapping[str, StageState] | None = None, owner: str = "router-1"
) -> AsyncIterator[Front]:
    keys = KeyRing(settings.access) if settings.access.keyed else None
    store = JobStore(settings.jobs.database_url)
    images = ImageStore(settings.images.url, settings.images.min_free_bytes)
    await store.open()
    await images.open()
    metrics, hub = FrontMetrics(), EventHub()
    jobs = settings.jobs
    calls = StageCalls(
        stages, settings.stages, sender=owner, attempts=jobs.stage_attempts, patience_s=jobs.stage_retry_s
    )
    costs = CostModel()
    traces = JobTraces(owner, settings.traces.endpoint, settings.traces.sampled)
    c2pa = settings.provenance.c2pa
    signer = None if c2pa is None else ImageSigner(c2pa, metrics)
    marking = settings.provenance.watermark
    watermark = None if marking is None else ImageWatermark(marking)
    live = LiveSettings(settings, store.registry)
    runner = JobRunner(
        settings,
        present=lambda: live.settings,
        store=store,
        images=images,
        calls=calls,
        hub=hub,
        metrics=metrics,
        costs=costs,
        traces=traces,
        signer=signer,
        watermark=watermark,
        owner=owner,
    )

    async def readiness() -> Mapping[str, StageState]:
        return states or {}

    await live.look()
    filtering = PromptFilter(settings.safety.prompt_patterns)
    loras = LoraFolder(settings.loras.folder)
    controlnets = ControlnetFolder(settings.controlnets.folder)
    ip_adapters = IpAdapterFolder(settings.ip_adapters.folder)
    vaes = VaeFolder(settings.vaes.folder)
    upscalers = UpscalerFolder(settings.upscalers.folder)
    detectors = DetectorFolder(settings.detectors.folder)
    embeddings = EmbeddingFolder(settings.stages.text_encoder.embeddings)
    service = Service(
        settings,
        store=store,
        images=images,
        runner=runner,
        checks=StageChecks(settings.stages.text_encoder, calls, readiness),
        hub=hub,
        metrics=metrics,
        prompt_filter=filtering,
        loras=loras,
        controlnets=controlnets,
        ip_adapters=ip_adapters,
        vaes=vaes,
        upscalers=upscalers,
        detectors=detectors,
        embeddings=embeddings,
        wildcards=WildcardFolder(settings.prompts.wildcards),
        signer=signer,
        watermark=watermark,
        keys=keys,
        rates=RateLimits(settings.access),
        live=live,
        weights=WeightFiles(
            {
                "loras": loras,
                "controlnets": controlnets,
                "ip_adapters": ip_adapters,
                "vaes": vaes,
                "upscalers": upscalers,
                "detectors": detectors,
                "embeddings": embeddings,
            },
            settings,
            store.registry,
        ),
        added=AddedModels(settings, live=live, store=store, loras=loras, retain=calls.retain),
    )
    batches = BatchDriver(service, {"/v1/": OpenAIBatches(service), "/batches": MatrixBatches(images, settings)}, owner)
    maintenance = Maintenance(
        settings.jobs,
        store=store,
        images=images,
        runner=runner,
        live=live,
        metrics=metrics,
        costs=costs,
        signer=signer,
    )

    webhooks = WebhookDelivery(
        settings.webhooks, store=store, metrics=metrics, body_of=lambda job, root: webhook_body(job, runner, root)
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield

    app = build_application(service, readiness, lifespan=lifespan, adds_request_id=True)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://darkroom", timeout=60) as http:
        if settings.registry.folders or settings.registry.repositories:
            service.added.start(service.draw_first_for)
        try:
            yield Front(service, maintenance, webhooks, batches, app, http)
        finally:
            await service.added.stop()
            await batches.stop()
            await runner.drain(0)
            calls.close()
            await webhooks.stop()
            await asyncio.to_thread(traces.close)
            await store.close()


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    """Wait for a condition that another thread or task brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)
