"""The ingress deployment: HTTP in front, jobs behind, the stages' handles in between.

It puts the parts together and owns their lives; what they do is in api/ and jobs/.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
from serve_app.api.app import build_application
from serve_app.api.openai.batch_lines import OpenAIBatches
from serve_app.api.service import Service
from serve_app.auth.key_file import KeyRing
from serve_app.auth.rate_limits import RateLimits
from serve_app.batches.driver import BatchDriver
from serve_app.batches.matrix_lines import MatrixBatches
from serve_app.config.settings import Settings
from serve_app.dispatch.demand_reporter import DemandReporter
from serve_app.estimation.cost_model import CostModel
from serve_app.image_store.store import ImageStore
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.events import EventHub
from serve_app.jobs.maintenance import Maintenance
from serve_app.jobs.runner import JobRunner
from serve_app.observability import logs
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
from serve_app.stages.readiness import Readiness
from serve_app.webhooks.delivery import WebhookDelivery, webhook_body

log = logs.get_logger(__name__)

# of graceful_shutdown_timeout_s, so that what is left can still be handed back to the queue
_DRAIN_SHARE = 0.8


def missing_of_ray(environment: Mapping[str, str], niceness: int) -> list[str]:
    """What this cluster's Ray lacks that `darkroom serve` and the cluster files give it; nothing where they started it.

    Args:
        environment: of a process of the cluster.
        niceness: of that process.
    """
    lacks = []
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        lacks.append("a token: whoever reaches Ray's ports can run code (RAY_AUTH_MODE=token)")
    else:
        token = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        if token.is_file() and token.stat().st_mode & 0o077:  # Ray writes its own so
            lacks.append(f"a private token: other users of this machine may read {token} (chmod 600)")
    if niceness > 0:
        lacks.append(f"processor time: nice {niceness} yields to every other process (RAY_worker_niceness=0)")
    return lacks


@serve.ingress()
class Router:
    """Accepts requests as jobs, runs them over the stages, and answers.

    It starts before the stages do: GET /ready says what is still missing.

    Args:
        settings: of the application.
        handles: of the stages, by their key in the settings' `stages`.
    """

    def __init__(self, settings: Settings, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        logs.configure()
        if lacks := missing_of_ray(os.environ, os.nice(0)):
            log.warning("start with `darkroom serve`, which also checks the configuration file", lacks=lacks)
        jobs = settings.jobs
        metrics = FrontMetrics()
        hub = EventHub()
        costs = CostModel()
        self._settings = settings
        self._store = JobStore(jobs.database_url)
        self._images = ImageStore(settings.images.url, settings.images.min_free_bytes)
        stages = Stages.of(handles)
        owner = serve.get_replica_context().replica_id.unique_id
        self._calls = StageCalls(
            stages, settings.stages, sender=owner, attempts=jobs.stage_attempts, patience_s=jobs.stage_retry_s
        )
        self._traces = JobTraces(owner, settings.traces.endpoint, settings.traces.sampled)
        c2pa = settings.provenance.c2pa
        signer = None if c2pa is None else ImageSigner(c2pa, metrics)
        marking = settings.provenance.watermark
        watermark = None if marking is None else ImageWatermark(marking)
        self._live = LiveSettings(settings, self._store.registry)
        self._runner = JobRunner(
            settings,
            present=lambda: self._live.settings,
            store=self._store,
            images=self._images,
            calls=self._calls,
            hub=hub,
            metrics=metrics,
            costs=costs,
            traces=self._traces,
            signer=signer,
            watermark=watermark,
            owner=owner,
        )
        self._demand = DemandReporter(
            {
                name: handle
                for name, handle in stages.denoisers.items()
                if getattr(settings.stages, name).autoscaling is not None
            },
            self._runner.demand,
        )
        self._readiness = Readiness(handles)
        loras = LoraFolder(settings.loras.folder)
        controlnets = ControlnetFolder(settings.controlnets.folder)
        ip_adapters = IpAdapterFolder(settings.ip_adapters.folder)
        vaes = VaeFolder(settings.vaes.folder)
        upscalers = UpscalerFolder(settings.upscalers.folder)
        detectors = DetectorFolder(settings.detectors.folder)
        embeddings = EmbeddingFolder(settings.stages.text_encoder.embeddings)
        self._weights = WeightFiles(
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
            self._store.registry,
        )
        self._added = AddedModels(settings, live=self._live, store=self._store, loras=loras, retain=self._calls.retain)
        self._service = Service(
            settings=settings,
            store=self._store,
            images=self._images,
            runner=self._runner,
            checks=StageChecks(settings.stages.text_encoder, self._calls, self._readiness.stages),
            hub=hub,
            metrics=metrics,
            prompt_filter=PromptFilter(settings.safety.prompt_patterns),
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
            keys=KeyRing(settings.access) if settings.access.keyed else None,
            rates=RateLimits(settings.access),
            live=self._live,
            weights=self._weights,
            added=self._added,
        )
        self._batches = BatchDriver(
            self._service,
            {"/v1/": OpenAIBatches(self._service), "/batches": MatrixBatches(self._images, settings)},
            owner,
        )
        self._maintenance = Maintenance(
            jobs,
            store=self._store,
            images=self._images,
            runner=self._runner,
            live=self._live,
            metrics=metrics,
            costs=costs,
            signer=signer,
        )

        self._webhooks = WebhookDelivery(
            settings.webhooks,
            store=self._store,
            metrics=metrics,
            body_of=lambda job, root: webhook_body(job, self._runner, root),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's name for it
        return build_application(self._service, self._readiness.stages, lifespan=self._lifespan, adds_request_id=False)

    def check_health(self) -> None:
        """Serve's health check: raises what ended the upkeep of jobs, batches, models, reports or webhooks."""
        self._maintenance.check()
        self._batches.check()
        self._live.check()
        self._added.check()
        self._demand.check()
        self._webhooks.check()

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Serve ends it when no request is in flight any more; jobs may be, and are given time to end."""
        await self._store.open()
        await self._live.start()
        await self._weights.settle()
        await asyncio.to_thread(self._service.folders)  # the log says which files are skipped
        await self._images.open()
        await self._maintenance.start()
        self._added.start(self._service.draw_first_for)
        await self._webhooks.start()
        await self._batches.start()
        self._demand.start()
        yield
        log.info("draining", jobs=sum(self._runner.depth()))
        await self._batches.stop()
        await self._runner.drain(_DRAIN_SHARE * self._settings.stages.router.graceful_shutdown_timeout_s)
        await self._demand.stop()
        self._calls.close()
        await self._webhooks.stop()
        await self._maintenance.stop()
        await self._added.stop()
        await self._live.stop()
        await asyncio.to_thread(self._traces.close)
        await self._store.close()
