"""Checkpoints that come with their requests: the same bits as those of the settings, and nothing stays when they go."""

import dataclasses
import gc
import resource
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.checkpoints.loader import describe_denoiser
from deployments.engine.checkpoints.spec import AddedCheckpoint, CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.device import release_memory
from deployments.engine.engine import Engine
from deployments.engine.errors import CheckpointError, UnknownCheckpoint
from deployments.engine.memory.limits import AllowedSizes
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Event, Progress
from deployments.engine.warm_up import warm_up_lane
from tests.deployments.engine.listening import Listener, ask
from tests.tiny_checkpoints import write_tiny_sd15

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

NAME = "new@0001"

# each loads a checkpoint of 14 MB
CYCLES = 8


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> AddedCheckpoint:
    folder = write_tiny_sd15(tmp_path_factory.mktemp("added") / "new", seed=11)
    return AddedCheckpoint(CheckpointSpec(family="sd15", source=str(folder)), AllowedSizes())


def ask_new(brought: AddedCheckpoint | None, lane_id: str = "new", **changes: Any) -> DenoiseRequest:
    return ask(lane_id, **{"checkpoint": NAME, "added": brought, "reproducible": True} | changes)


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "the condition never came true"
        time.sleep(0.01)


def known(engine: Engine) -> set[str]:
    """Every name of a checkpoint that the engine keeps something under."""
    loop, memory = engine._loop, engine._loop.memory
    return {
        *engine._catalogue,
        *loop.residency.names,
        *loop.schedules,
        *loop._added,
        *loop._weights._host_cache.names,
        *(name for name, _ in loop._weights._previews),
        *memory._footprints,
        *memory._allowed,
        *memory.largest_sizes,
    }


def image(result: DenoiseResult) -> bytes:
    assert result.image is not None
    return result.image.tobytes()


def test_it_draws_what_one_of_the_settings_draws_and_changes_no_neighbour(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, added: AddedCheckpoint
) -> None:
    text = encode_sd15("a red circle")
    neighbours = [(ask(f"n{seed}", seed=seed, reproducible=True, steps=12), text) for seed in (1, 2)]
    configured = Engine(EngineSettings(device="cpu", cpu_threads=1), {NAME: added.spec})
    configured.start()
    expected = run_together(configured, [(ask_new(None), text)])
    configured.stop()
    engine = make_engine()
    alone = run_together(engine, neighbours)
    with pytest.raises(UnknownCheckpoint):
        engine.submit(ask_new(None), text, Listener())
    *among, drawn = run_together(engine, [*neighbours, (ask_new(added), text)])
    assert image(drawn) == image(expected[0])
    assert drawn.checkpoint_hash == expected[0].checkpoint_hash
    engine.retain([])
    after = run_together(engine, neighbours)
    assert [image(one) for one in among] == [image(one) for one in after] == [image(one) for one in alone]
    eventually(lambda: NAME not in known(engine))
    again = run_together(engine, [(ask_new(added), text)])  # a router that hadn't heard of its end
    assert image(again[0]) == image(drawn)


def test_it_goes_when_the_last_lane_that_uses_it_has_ended(
    make_engine: MakeEngine, encode_sd15: Encode, added: AddedCheckpoint
) -> None:
    engine, text = make_engine(max_lanes=1), encode_sd15("a red circle")
    first, second = Listener(), Listener()
    told = False

    def tell(item: Event | Exception) -> None:
        nonlocal told
        if isinstance(item, Progress) and not told:
            engine.retain([])
            told = True
        first(item)

    engine.submit(ask_new(added, "first", steps=10), text, tell)
    engine.submit(ask_new(added, "second"), text, second)  # waits, for there is one place
    assert isinstance(first.outcome(), DenoiseResult)
    assert isinstance(second.outcome(), DenoiseResult)
    eventually(lambda: NAME not in known(engine))


def test_what_is_retained_stays(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, added: AddedCheckpoint
) -> None:
    engine, text = make_engine(), encode_sd15("a red circle")
    other = ask_new(added, "other", checkpoint="other@0002")
    run_together(engine, [(ask(), text), (ask_new(added), text), (other, text)])
    loads = engine.stats().loads_total
    engine.retain([NAME])
    eventually(lambda: "other@0002" not in known(engine))
    assert {NAME, "sd15"} <= set(engine.stats().resident)
    run_together(engine, [(ask(), text), (ask_new(added), text)])
    assert engine.stats().loads_total == loads


def test_cycles_leave_nothing(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, added: AddedCheckpoint
) -> None:
    # two places for three checkpoints: what doesn't stay on the device stays in the host's memory
    engine, text = make_engine(resident_checkpoints=2, host_memory_gib=0.1), encode_sd15("a red circle")
    before = known(engine)
    held: list[int] = []
    for cycle in range(6):
        name = f"new@{cycle}"
        run_together(engine, [(ask("usual"), text), (ask_new(added, checkpoint=name), text)])
        unet = weakref.ref(engine._loop.residency[name].weights.unet)
        engine.retain([])
        eventually(lambda name=name: name not in known(engine))
        gc.collect()
        assert unet() is None
        held.append(sum(one.nbytes for one in gc.get_objects() if issubclass(type(one), torch.Tensor)))
    assert known(engine) == before
    assert held[-1] <= held[1]


def test_cycles_cost_no_memory(run_together: RunTogether) -> None:
    spec = CheckpointSpec(family="sd15", source="package:demo_models/demo-sd15")
    engine = Engine(EngineSettings(device="cpu", cpu_threads=1, resident_checkpoints=2), {"demo": spec})
    engine.start()
    request, text = warm_up_lane("demo", describe_denoiser(spec), 64, 64)

    def cycles(first: int, count: int) -> None:
        for number in range(first, first + count):
            name = f"new@{number}"
            lane = dataclasses.replace(
                request, lane_id=name, checkpoint=name, added=AddedCheckpoint(spec, AllowedSizes())
            )
            run_together(engine, [(request, text), (lane, text)])
            engine.retain([])
            eventually(lambda name=name: name not in known(engine))

    cycles(0, 3)
    release_memory()
    before = _resident_mib()
    cycles(3, CYCLES)
    release_memory()
    grown = _resident_mib() - before
    engine.stop()
    assert grown < 16


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_one_that_cannot_be_loaded_fails_its_lanes_alone(
    make_engine: MakeEngine, encode_sd15: Encode, added: AddedCheckpoint, tmp_path: Path
) -> None:
    engine, text = make_engine(), encode_sd15("a red circle")
    broken = dataclasses.replace(added, spec=added.spec.model_copy(update={"source": str(tmp_path)}))
    listeners = [Listener(), Listener()]
    engine.submit(ask_new(broken), text, listeners[0])
    engine.submit(ask("usual"), text, listeners[1])
    assert isinstance(listeners[0].outcome(), CheckpointError)
    assert isinstance(listeners[1].outcome(), DenoiseResult)
    engine.retain([])
    eventually(lambda: NAME not in known(engine))
