"""New sampler tables are traced beside the device thread: they hold up nobody, and lanes still come in order."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from deployments.engine.engine import Engine
from deployments.engine.errors import Cancelled, EngineStopped, InvalidRequest, UnknownSampler
from deployments.engine.samplers import tables
from deployments.engine.types import Conditioning, DenoiseResult
from tests.deployments.engine.listening import Listener, ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]

NEW = 41  # steps that no other test asks for: their table has to be traced


@dataclass
class Gate:
    """Stops new tables on their way."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, trace = Gate(), tables.trace

    def trace_behind_the_gate(*args: object, **options: object) -> tables.SamplerTable:
        gate.reached.set()
        assert gate.opened.wait(60)
        return trace(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "trace", trace_behind_the_gate)
    tables._table.cache_clear()
    yield gate
    gate.opened.set()


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    engine = make_engine(max_lanes=2)
    engine.preload("sd15").result()
    return engine


def test_the_others_go_on_meanwhile(engine: Engine, encode_sd15: Encode, gate: Gate) -> None:
    text = encode_sd15("x")
    running, new = Listener(), Listener()
    gate.opened.set()
    engine.submit(ask("running", steps=300, sampler="pndm"), text, running)
    running.wait_for(lambda items: len(items) >= 2)
    gate.opened.clear()
    gate.reached.clear()
    engine.submit(ask("new", steps=NEW), text, new)
    assert gate.reached.wait(60)
    so_far = len(running.items)
    running.wait_for(lambda items: len(items) >= so_far + 5)
    assert new.items == []
    gate.opened.set()
    assert isinstance(new.outcome(), DenoiseResult)
    engine.cancel("running")
    assert isinstance(running.outcome(), Cancelled)


def test_lanes_come_in_the_order_of_their_submission(make_engine: MakeEngine, encode_sd15: Encode, gate: Gate) -> None:
    engine = make_engine(max_lanes=1)
    engine.preload("sd15").result()
    gate.opened.set()
    warm = Listener()
    engine.submit(ask("known"), encode_sd15("x"), warm)
    assert isinstance(warm.outcome(), DenoiseResult)
    gate.opened.clear()
    ended: list[str] = []

    def note(name: str, listener: Listener) -> Callable[[object], None]:
        def hear(item: object) -> None:
            if isinstance(item, DenoiseResult):
                ended.append(name)
            listener(item)  # type: ignore[arg-type]

        return hear

    first, second = Listener(), Listener()
    engine.submit(ask("new", steps=NEW), encode_sd15("x"), note("new", first))
    engine.submit(ask("known"), encode_sd15("x"), note("known", second))
    gate.opened.set()
    assert isinstance(second.outcome(), DenoiseResult)
    assert ended == ["new", "known"]


def test_a_lane_can_be_cancelled_before_its_table_is_there(engine: Engine, encode_sd15: Encode, gate: Gate) -> None:
    listener, follower = Listener(), Listener()
    engine.submit(ask("new", steps=NEW), encode_sd15("x"), listener)
    assert gate.reached.wait(60)
    engine.cancel("new")
    assert isinstance(listener.outcome(), Cancelled)
    gate.opened.set()
    engine.submit(ask("next", steps=2), encode_sd15("x"), follower)
    assert isinstance(follower.outcome(), DenoiseResult)
    assert len(listener.items) == 1


def test_a_lane_hears_of_the_end_before_its_table_is_there(engine: Engine, encode_sd15: Encode, gate: Gate) -> None:
    listener = Listener()
    engine.submit(ask("new", steps=NEW), encode_sd15("x"), listener)
    assert gate.reached.wait(60)
    engine.stop()
    assert isinstance(listener.outcome(), EngineStopped)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_table_that_cannot_be_is_the_lanes_failure(
    make_engine: MakeEngine, encode_sd15: Encode, loaded: bool
) -> None:
    engine = make_engine()
    if loaded:
        engine.preload("sd15").result()
    text = encode_sd15("x")
    listeners = {name: Listener() for name in ("unknown", "too many", "fine")}
    engine.submit(ask("unknown", sampler="nothing"), text, listeners["unknown"])
    engine.submit(ask("too many", steps=5000), text, listeners["too many"])
    engine.submit(ask("fine", steps=2), text, listeners["fine"])
    assert isinstance(listeners["unknown"].outcome(), UnknownSampler)
    too_many = listeners["too many"].outcome()
    assert isinstance(too_many, InvalidRequest)
    assert too_many.field == "steps"
    assert isinstance(listeners["fine"].outcome(), DenoiseResult)
