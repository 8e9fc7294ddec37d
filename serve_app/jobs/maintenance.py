"""Two loops beside the running jobs: leases, adoption, retention, learned costs, refusals, gauges."""

import asyncio
import time

from serve_app.config.settings import JobsSettings
from serve_app.errors import StaleLease, StoreUnavailable
from serve_app.estimation.cost_model import CostModel
from serve_app.image_store.store import ImageStore
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job
from serve_app.jobs.retention import Retention
from serve_app.jobs.runner import JobRunner
from serve_app.observability.logs import get_logger
from serve_app.observability.metrics import FrontMetrics
from serve_app.provenance.certificates import EXPIRES_SOON_S
from serve_app.provenance.signer import ImageSigner
from serve_app.registry.live_settings import LiveSettings

log = get_logger(__name__)

# seconds between two writes of what was learned
_COSTS_S = 60.0

# and between two warnings of a certificate
_CERTIFICATE_S = 86_400.0


class Maintenance:
    """The loops of one process; `tasks` end only by a bug, which the health check looks for."""

    def __init__(
        self,
        settings: JobsSettings,
        *,
        store: JobStore,
        images: ImageStore,
        runner: JobRunner,
        live: LiveSettings,
        metrics: FrontMetrics,
        costs: CostModel,
        signer: ImageSigner | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._retention = Retention(store, images, settings.result_ttl_s)
        self._orphans_at = 0.0
        self._runner = runner
        self._live = live
        self._metrics = metrics
        self._costs = costs
        self._costs_at = 0.0
        self._signer = signer
        self._certificate_at = 0.0
        self._unfit: dict[str, float] = {}  # ownerless jobs that can't run here: when they were first seen, monotonic
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the loops; the first round is at once, to adopt a dead owner's jobs. Raises StoreUnavailable."""
        self._costs.begin_with(await self._store.costs.load())
        self.tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        """End both loops, and store the learned costs and the refusals."""
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        try:
            await self._keep_costs()
            await self._store.usage.keep_refusals()
        except StoreUnavailable as error:
            log.warning("learned costs and refusals weren't stored", cause=repr(error.__cause__))

    def check(self) -> None:
        """Raise the error that ended a loop, if one has ended."""
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _beat(self) -> None:
        while True:
            try:
                await self.beat()
            except StoreUnavailable as error:
                log.warning("no sign of life: the job database didn't answer", cause=repr(error.__cause__))
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.warning("nothing was swept: a store didn't answer", cause=repr(error.__cause__))
            await asyncio.sleep(self._settings.sweep_interval_s)

    async def beat(self) -> None:
        """Run one round: renew the leases, and adopt jobs without an owner."""
        held = self._runner.held()
        if held:
            alive = await self._store.heartbeat(held, lease_s=self._settings.lease_s)
            self._runner.drop(alive.lost)
            for job_id in alive.cancel_requested:
                self._runner.cancel(job_id)
        for job in await self._store.settle_abandoned(self._settings.max_attempts):
            log.warning("an abandoned job was settled", job_id=job.id, state=job.state.value)
            self._runner.report(job)
        ownerless = [
            job for job in (*await self._store.queued(), *await self._store.expired()) if not self._runner.runs(job.id)
        ]
        self._unfit = {job.id: self._unfit[job.id] for job in ownerless if job.id in self._unfit}
        if ownerless:
            await self._live.look()  # one may be of a model that was added a moment ago
        for job in ownerless:
            await self._adopt(job)
        self._metrics.depth(*self._runner.depth())
        self._metrics.without_place(self._runner.lanes_without_place())
        await self._store.usage.keep_refusals()
        if self._signer is not None:
            self._look_at_certificate(self._signer)
        if time.monotonic() >= self._costs_at:
            await self._keep_costs()
            self._costs_at = time.monotonic() + _COSTS_S

    def _look_at_certificate(self, signer: ImageSigner) -> None:
        left_s = signer.seconds_left()
        self._metrics.certificate(left_s)
        if left_s < EXPIRES_SOON_S and time.monotonic() >= self._certificate_at:
            log.warning("the certificate that signs images expires", name=signer.name, on=signer.expires.isoformat())
            self._certificate_at = time.monotonic() + _CERTIFICATE_S

    async def _keep_costs(self) -> None:
        learned = self._costs.unsaved()
        if learned:
            await self._store.costs.keep(learned)

    async def _adopt(self, job: Job) -> None:
        """Run a job without an owner; one that doesn't fit these settings, or this version, fails.

        It does so after `lease_s`: during an upgrade a router of other settings or of a later version may take it up.
        """
        try:
            self._runner.start(job)
        except (KeyError, ValueError):
            since = self._unfit.setdefault(job.id, time.monotonic())
            if time.monotonic() - since < self._settings.lease_s:
                return
            log.warning("a stored job fits these settings no longer", job_id=job.id)
            claimed = await self._store.claim(
                job.id, owner="", lease_s=self._settings.lease_s, max_attempts=self._settings.max_attempts
            )
            if claimed is None:
                return
            message = "the service was started anew without what this job needs"
            try:
                ended = await self._store.fail(job.id, claimed.fence, code="unknown_model", message=message)
            except StaleLease:
                return  # it took so long that another has adopted it, who will find the same
            self._runner.report(ended)

    async def sweep(self) -> None:
        """Delete expired jobs, and seldom, because it lists all files, those that no job shows."""
        await self._retention.expire()
        if time.monotonic() >= self._orphans_at:
            deleted = await self._retention.delete_orphans()
            self._orphans_at = time.monotonic() + self._settings.orphan_interval_s
            if deleted:
                log.info("files that no job shows were deleted", files=deleted)
