"""Calls outlive the replicas under them, on real Serve; the stages are stand-ins, so that it starts fast."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray import serve

from deployments.config import StagesSettings
from deployments.engine.errors import NumericalFailure
from deployments.engine.lanes.snapshot import LaneSnapshot
from deployments.engine.types import DenoiseRequest, DenoiseResult, Progress, TextEncodingRequest
from serve_app.errors import StageUnavailable
from serve_app.stages.client import StageCalls, Stages
from tests.ray_cluster import RayCluster
from tests.serve_app.front import until
from tests.serve_app.stand_in_stages import StandInClassifier, StandInDenoiser, StandInEncoder, state_after

pytestmark = pytest.mark.ray

APP = "stage-calls"


@pytest.fixture(scope="module")
def stages(ray_serve: RayCluster) -> Iterator[Stages]:
    names: dict[type, str] = {StandInEncoder: "Encoder", StandInDenoiser: "Denoiser", StandInClassifier: "Classifier"}
    for cls, name in names.items():
        app = serve.deployment(cls).options(
            name=name,
            ray_actor_options={"num_cpus": 0.1},
            max_ongoing_requests=100,
            health_check_period_s=0.5,
        )
        serve.run(app.bind(), name=f"{APP}-{name}", route_prefix=f"/{name}")
    handles = {name: serve.get_deployment_handle(name, f"{APP}-{name}") for name in names.values()}
    yield Stages(handles["Encoder"], {"sd15": handles["Denoiser"]}, handles["Classifier"])
    for name in names.values():
        serve.delete(f"{APP}-{name}")


@pytest.fixture
async def calls(stages: Stages) -> StageCalls:
    return StageCalls(stages, StagesSettings(), sender="router-1", attempts=5, patience_s=60.0)


def kill(name: str) -> None:
    """End every replica of a stage, as a crash would."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{APP}-{name}#"):
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))


def request(number: int, steps: int = 20) -> DenoiseRequest:
    return DenoiseRequest(
        lane_id=f"lane-{number}",
        checkpoint="demo-sd15",
        seed=6,
        steps=steps,
        guidance_scale=5.0,
        width=64,
        height=64,
        sampler="euler",
    )


async def denoise(
    calls: StageCalls,
    prompt: str,
    seen: list[Progress] | None = None,
    resume: LaneSnapshot | None = None,
    **changes: Any,
) -> DenoiseResult:
    encoding = calls.encoding(TextEncodingRequest("demo-sd15", prompt, None))
    steps = [] if seen is None else seen
    return await calls.denoise(
        "sd15", lambda number: replace(request(number), **changes), encoding, steps.append, resume
    )


async def test_a_call_streams_its_steps_and_ends_with_the_result(calls: StageCalls) -> None:
    seen: list[Progress] = []
    result = await denoise(calls, "a red circle", seen)
    assert [progress.step for progress in seen] == list(range(1, 21))
    assert result.image is not None
    assert (result.lane_id, int(result.image[0, 0, 0])) == ("lane-0", 6)
    assert not (await calls.classify(result.image)).flagged


async def test_a_replica_that_dies_in_mid_stream(calls: StageCalls) -> None:
    seen: list[Progress] = []
    running = asyncio.create_task(denoise(calls, "slow", seen))
    await until(lambda: len(seen) > 2)
    kill("Denoiser")
    result = await running
    assert result.image is not None
    assert (result.lane_id != "lane-0", int(result.image[0, 0, 0])) == (True, 6)


async def test_a_stage_that_is_down_when_the_call_is_made(calls: StageCalls) -> None:
    kill("Denoiser")
    assert (await denoise(calls, "a red circle")).image is not None


async def test_an_encoder_that_dies_takes_its_embeddings_along(calls: StageCalls) -> None:
    kill("Encoder")
    assert (await denoise(calls, "a blue circle")).image is not None


async def test_an_encoder_that_fails_once(calls: StageCalls) -> None:
    assert (await denoise(calls, "a forgotten circle")).image is not None


async def test_a_classifier_that_died(calls: StageCalls) -> None:
    result = await denoise(calls, "a red circle")
    kill("Classifier")
    assert result.image is not None
    assert not (await calls.classify(result.image)).flagged


async def test_an_engine_that_stopped_is_tried_again(calls: StageCalls) -> None:
    assert (await denoise(calls, "lost")).image is not None


async def test_a_lost_lane_goes_on_from_its_newest_state(calls: StageCalls) -> None:
    seen: list[Progress] = []
    result = await denoise(calls, "lost", seen, seed=60, state_every=2)
    assert result.image is not None
    assert [progress.step for progress in seen] == [1, 2, 3, 3, *range(3, 21)]


async def test_a_state_from_before_the_call(calls: StageCalls) -> None:
    seen: list[Progress] = []
    await denoise(calls, "a red circle", seen, resume=state_after(17, request(0)))
    assert [progress.step for progress in seen] == [18, 19, 20]


async def test_a_state_that_the_stage_refuses_is_dropped(stages: Stages) -> None:
    seen: list[Progress] = []
    calls = StageCalls(stages, StagesSettings(), sender="router-1", attempts=1, patience_s=60.0)
    result = await denoise(calls, "picky", seen, resume=state_after(17, request(0)))
    assert result.image is not None
    assert [progress.step for progress in seen] == list(range(1, 21))


async def test_a_client_that_stops_waiting_gives_a_lost_stage_up(stages: Stages) -> None:
    calls = StageCalls(stages, StagesSettings(), sender="router-1", attempts=5, patience_s=60.0)
    calls.stop_waiting()
    with pytest.raises(StageUnavailable, match="no live replica"):
        await denoise(calls, "always lost")


async def test_a_lost_stage_is_waited_for_while_its_replicas_start(stages: Stages) -> None:
    settings = StagesSettings.model_validate({"sd15": {"autoscaling": {"startup_s": 60}}})
    calls = StageCalls(stages, settings, sender="router-1", attempts=2, patience_s=0.0)
    with pytest.raises(StageUnavailable, match="2 times"):  # it was there again for the second
        await denoise(calls, "always lost")


async def test_an_error_of_the_request_passes_as_it_is(calls: StageCalls) -> None:
    with pytest.raises(NumericalFailure) as failed:
        await denoise(calls, "poison")
    assert type(failed.value) is NumericalFailure
    assert str(failed.value) == "not-a-number in the latents"


async def test_attempts_are_bounded(stages: Stages) -> None:
    with pytest.raises(StageUnavailable, match="2 times"):
        await denoise(
            StageCalls(stages, StagesSettings(), sender="router-1", attempts=2, patience_s=60.0), "always lost"
        )


async def test_calls_that_a_going_replica_cancels_are_made_again(calls: StageCalls) -> None:
    assert (await denoise(calls, "cut off", seed=70)).image is not None
    await calls.check_texts(TextEncodingRequest("demo-sd15", "cut off", None))


async def test_cancelling_takes_the_lane_out(calls: StageCalls, stages: Stages) -> None:
    seen: list[Progress] = []
    running = asyncio.create_task(denoise(calls, "endless", seen))
    await until(lambda: len(seen) > 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(10):
        while "lane-0" not in await stages.denoisers["sd15"].lanes_left.remote():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
