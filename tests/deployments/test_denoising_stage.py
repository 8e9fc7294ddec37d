"""A denoising stage as a Serve deployment: streams, claims, residency, health, draining."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from deployments.config import StageSettings
from deployments.denoising_stage import is_worth_a_line
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.errors import EngineStopped, InvalidRequest, ReplicaFull, UnknownCheckpoint, Withdrawn
from deployments.engine.types import (
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    Event,
    Progress,
    PromptEmbedding,
)
from deployments.sd15 import SD15
from tests.ray_cluster import RayCluster
from tests.tiny_checkpoints import TEXT_CHANNELS, write_tiny_sd15

pytestmark = pytest.mark.ray

APP = "stage"
GRACE_S = 60


class FragileSD15(SD15):
    """SD15 with a way to end its engine's thread from outside, as a fatal error would."""

    async def break_engine(self) -> None:
        self._engine.stop()


def conditioning() -> Conditioning:
    random = np.random.default_rng(0)
    positive, negative = (PromptEmbedding(random.standard_normal((77, TEXT_CHANNELS), np.float32)) for _ in range(2))
    return Conditioning(positive, negative)


def request(lane_id: str, checkpoint: str = "first", **changes: Any) -> DenoiseRequest:
    values: dict[str, Any] = {
        "lane_id": lane_id,
        "checkpoint": checkpoint,
        "seed": 7,
        "steps": 3,
        "guidance_scale": 5.0,
        "width": 64,
        "height": 64,
        "sampler": "euler",
    }
    return DenoiseRequest(**values | changes)


def stream(handle: DeploymentHandle, asked: DenoiseRequest) -> Any:
    call = handle.denoise.options(stream=True, multiplexed_model_id=asked.checkpoint)
    return call.remote(asked, conditioning())


def finish(handle: DeploymentHandle, asked: DenoiseRequest) -> DenoiseResult:
    *_, result = stream(handle, asked)
    assert isinstance(result, DenoiseResult)
    return result


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def advertised() -> set[str]:
    """What Serve's request routers are told that the replicas hold."""
    replicas = ray.get(_get_global_client()._controller._all_running_replicas.remote())
    return {
        checkpoint
        for infos in replicas.values()
        for info in infos
        if info.replica_id.deployment_id.app_name == APP
        for checkpoint in info.multiplexed_model_ids
    }


@pytest.fixture(scope="module")
def catalogue(tiny_sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointSpec]:
    second = write_tiny_sd15(tmp_path_factory.mktemp("checkpoints") / "second", seed=1)
    return {
        "first": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "second": CheckpointSpec(family="sd15", source=str(second)),
    }


@pytest.fixture(scope="module")
def handle(ray_serve: RayCluster, catalogue: dict[str, CheckpointSpec]) -> Iterator[DeploymentHandle]:
    settings = StageSettings(engine=EngineSettings(progress_interval_s=0.0, cpu_threads=1), hand_over_after_s=GRACE_S)
    deployment = serve.deployment(FragileSD15).options(
        name="SD15",
        ray_actor_options={"num_cpus": 0.1, "num_gpus": 0.25},
        max_ongoing_requests=100,
        health_check_period_s=0.5,
        graceful_shutdown_timeout_s=GRACE_S,
        graceful_shutdown_wait_loop_s=0.2,
    )
    sizes = {"first": (64, 64), "second": (128, 64)}
    yield serve.run(deployment.bind(settings, catalogue, sizes=sizes), name=APP, route_prefix=None)
    serve.delete(APP)


def test_a_replica_has_drawn_before_it_is_healthy(handle: DeploymentHandle) -> None:
    stats = handle.stats.remote().result()
    assert (stats.steps_total, stats.finished_total, stats.images_total) == (2, 1, 1)  # of "first", which is preloaded


def test_describes_its_claim(handle: DeploymentHandle) -> None:
    description = handle.describe.remote().result()
    assert description.name == "SD15"
    assert (description.device, description.dtype) == ("cpu", "float32")
    assert description.claim == 0.25
    assert len(description.gpu_ids) == 1
    assert description.visible_devices == description.gpu_ids[0]
    assert description.memory.policy == "resident"
    assert {(row.component, row.fits) for row in description.memory.rows} == {("UNet", True), ("VAE", True)}


def test_streams_progress_and_then_the_image(handle: DeploymentHandle) -> None:
    *progress, result = stream(handle, request("a"))
    assert [(event.step, event.steps) for event in progress if isinstance(event, Progress)] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert isinstance(result, DenoiseResult)
    assert result.image is not None
    assert (result.image.shape, result.image.dtype) == ((64, 64, 3), np.uint8)


def test_requests_share_steps_and_not_results(handle: DeploymentHandle) -> None:
    alone = finish(handle, request("alone", reproducible=True))
    before = handle.stats.remote().result()
    streams = [stream(handle, request(f"lane-{seed}", seed=seed, steps=20)) for seed in range(6)]
    together = finish(handle, request("together", reproducible=True))
    for other in streams:
        assert isinstance(list(other)[-1], DenoiseResult)
    after = handle.stats.remote().result()
    assert np.array_equal(alone.image, together.image)
    lane_steps = after.lane_steps_total - before.lane_steps_total
    assert lane_steps == 6 * 20 + 3
    assert after.steps_total - before.steps_total < lane_steps


def test_latents_go_from_call_to_call(handle: DeploymentHandle) -> None:
    """Arrays come out of Ray's object store read-only; the engine must not mind."""
    whole = finish(handle, request("whole", steps=4))
    first = finish(handle, request("part-1", steps=4, denoising_end=0.5, output="latents"))
    assert first.latents is not None
    rest = {"denoising_start": 0.5, "latents": first.latents, "generator_state": first.generator_state}
    second = finish(handle, request("part-2", steps=4, **rest))
    assert second.image is not None
    assert whole.image is not None
    assert np.abs(second.image.astype(int) - whole.image.astype(int)).max() <= 1


def test_errors_keep_their_class_and_code(handle: DeploymentHandle) -> None:
    with pytest.raises(UnknownCheckpoint) as caught:
        finish(handle, request("x", checkpoint="nothing"))
    assert caught.value.code == "unknown_model"


def test_a_schedule_without_a_step_is_known_beforehand(handle: DeploymentHandle) -> None:
    finish(handle, request("loads"))
    begins_late = {"sampler": "dpmpp_2m_karras", "steps": 20, "strength": 0.2, "denoising_end": 0.5}
    with pytest.raises(InvalidRequest, match="no step is left") as refused:
        handle.check_schedule.remote(request("late", **begins_late)).result()
    assert refused.value.field == "denoising_end"
    handle.check_schedule.remote(request("early", **begins_late | {"strength": 0.9})).result()


def test_a_cancelled_stream_leaves_the_engine(handle: DeploymentHandle) -> None:
    response = stream(handle, request("long", steps=900, sampler="ddim"))
    assert isinstance(next(response), Progress)
    response.cancel()
    eventually(lambda: handle.stats.remote().result().lanes_active == 0)
    assert handle.stats.remote().result().failures["cancelled"] >= 1


def test_prometheus_sees_the_engine(handle: DeploymentHandle) -> None:
    """By now the engine has counted steps, images and a failure."""
    port = ray.nodes()[0]["MetricsExportPort"]
    address = ray.nodes()[0]["NodeManagerAddress"]

    def exported() -> bool:
        text = httpx.get(f"http://{address}:{port}/metrics").text
        return all(
            f"ray_{name}" in text
            for name in (
                "darkroom_steps",
                "darkroom_lane_steps",
                "darkroom_rows",
                "darkroom_step_seconds",
                "darkroom_lanes_active",
                "darkroom_queue_wait_s",
                "darkroom_images",
                "darkroom_failures_total{",
            )
        )

    eventually(exported)


def test_residency_is_the_engines_and_serve_is_told(handle: DeploymentHandle) -> None:
    first = finish(handle, request("r1", checkpoint="first"))
    eventually(lambda: advertised() == {"first"})
    second = finish(handle, request("r2", checkpoint="second"))
    assert handle.describe.remote().result().checkpoints == ("second",)
    eventually(lambda: advertised() == {"second"})
    assert first.checkpoint_hash != second.checkpoint_hash


def test_a_dead_engine_is_noticed_and_replaced(handle: DeploymentHandle) -> None:
    before = handle.describe.remote().result().replica_id
    handle.break_engine.remote().result()

    def replaced() -> bool:
        replicas = ray.get(_get_global_client()._controller._all_running_replicas.remote())
        ids = [i.replica_id for infos in replicas.values() for i in infos]
        return any(replica.deployment_id.app_name == APP and replica.unique_id != before for replica in ids)

    eventually(replaced, timeout_s=60)
    assert finish(handle, request("again")).image is not None


def test_a_replica_that_must_go_hands_its_lanes_over(
    handle: DeploymentHandle, catalogue: dict[str, CheckpointSpec]
) -> None:
    app = "leaving"
    settings = StageSettings(
        engine=EngineSettings(progress_interval_s=0.0, cpu_threads=1, max_lanes=1), hand_over_after_s=0.0
    )
    deployment = serve.deployment(SD15).options(
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=100,
        graceful_shutdown_timeout_s=GRACE_S,
        graceful_shutdown_wait_loop_s=0.2,
    )
    leaving = serve.run(deployment.bind(settings, catalogue), name=app, route_prefix=None)
    asked = request("begun", steps=900, sampler="ddim", state_every=1000)
    begun = stream(leaving, asked)
    events: list[Event] = [next(begun)]
    waiting = stream(leaving, request("waiting", steps=900, sampler="ddim"))
    eventually(lambda: leaving.stats.remote().result().lanes_waiting == 1)
    deletion = threading.Thread(target=serve.delete, args=(app,))
    deletion.start()
    with pytest.raises(EngineStopped):
        events.extend(begun)
    with pytest.raises(EngineStopped):
        next(waiting)
    deletion.join()
    last = events[-1]
    assert isinstance(last, Progress)
    assert last.state is not None
    elsewhere = stream(handle, replace(asked, resume=last.state))
    event = next(elsewhere)
    assert isinstance(event, Progress)
    assert event.step == last.step + 1
    elsewhere.cancel()


def test_draining_finishes_what_is_in_flight(handle: DeploymentHandle) -> None:
    """The last test of the module: it deletes the application."""
    response = stream(handle, request("in-flight", steps=100, sampler="ddim"))
    events: list[Event] = [next(response)]
    deletion = threading.Thread(target=serve.delete, args=(APP,))
    deletion.start()
    events.extend(response)
    deletion.join()
    assert isinstance(events[-1], DenoiseResult)


def test_a_checkpoint_that_is_not_there_stops_the_start(ray_serve: RayCluster, tmp_path: Path) -> None:
    catalogue = {"missing": CheckpointSpec(family="sd15", source=str(tmp_path / "missing"))}
    deployment = serve.deployment(SD15).options(ray_actor_options={"num_cpus": 0.1}, max_constructor_retry_count=1)
    with pytest.raises(RuntimeError, match="failed"):
        serve.run(deployment.bind(StageSettings(), catalogue), name="no-start", route_prefix=None)
    message = serve.status().applications["no-start"].deployments["SD15"].message
    serve.delete("no-start")
    assert "CheckpointError" in message
    assert str(tmp_path / "missing") in message


@pytest.mark.parametrize(
    ("error", "logged"),
    [(ReplicaFull("no room"), False), (Withdrawn("taken back"), False), (EngineStopped("gone"), True), (None, True)],
)
def test_a_lane_that_goes_back_to_its_router_is_no_logged_error(error: Exception | None, logged: bool) -> None:
    info = None if error is None else (type(error), error, None)
    record = logging.LogRecord("ray.serve", logging.ERROR, "", 0, "Request failed.", (), info)
    assert is_worth_a_line(record) == logged
