"""A lane goes on from its state, in another engine, to the very bits it would have ended with."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deployments.engine.engine import Engine
from deployments.engine.errors import DarkroomError, EngineStopped, StateRefused
from deployments.engine.lanes.snapshot import LaneSnapshot, pack, unpack
from deployments.engine.mailbox import Stop
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Event, Progress
from tests.deployments.engine.listening import Listener, ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]

CIRCLE = np.full((64, 64, 3), 200, np.uint8)
HALF = np.repeat([[0, 255]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)
NOISY = np.random.default_rng(0).standard_normal((4, 8, 8), np.float32)


def events_of(engine: Engine, request: DenoiseRequest, text: Conditioning) -> tuple[list[Progress], DenoiseResult]:
    listener = Listener()
    engine.submit(request, text, listener)
    *progress, result = listener.items if listener.outcome() else ()
    assert isinstance(result, DenoiseResult), result
    return [event for event in progress if isinstance(event, Progress)], result


def states_of(progress: list[Progress]) -> dict[int, LaneSnapshot]:
    """By the step that they were told with; as they come out of a store."""
    return {
        event.step: LaneSnapshot.from_bytes(event.state.to_bytes()) for event in progress if event.state is not None
    }


def same_bits(one: DenoiseResult, other: DenoiseResult) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("image", "latents", "generator_state")]
    assert any(left is not None for left, _ in pairs)
    return all(left is right is None or left.tobytes() == right.tobytes() for left, right in pairs)


def check_states(first: Engine, second: Engine, request: DenoiseRequest, text: Conditioning) -> None:
    progress, undisturbed = events_of(first, request, text)
    states, steps = states_of(progress), progress[-1].steps
    assert sorted(states) == list(range(1, steps))
    for step in sorted({1, steps - 1}):
        before = second.stats()
        resumed = dataclasses.replace(request, resume=states[step], latents=None, generator_state=None)
        if request.mask is None:
            resumed = dataclasses.replace(resumed, image=None)
        after_it, result = events_of(second, resumed, text)
        assert [(event.step, event.steps) for event in after_it] == [(n, steps) for n in range(step + 1, steps + 1)]
        assert same_bits(result, undisturbed), step
        now = second.stats()
        assert now.lane_steps_total - before.lane_steps_total == steps - step
        assert now.resumed_steps_total - before.resumed_steps_total == step


def reproducible(**changes: Any) -> DenoiseRequest:
    return ask(reproducible=True, state_every=1, **changes)


def test_samplers_with_a_past_with_noise_and_of_second_order(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    first, second = make_engine(), make_engine()
    for sampler in ("pndm", "heun", "dpmpp_2m_sde", "unipc", "lcm"):
        request = reproducible(sampler=sampler, steps=5, output="latents", guidance_scale=1.0)
        check_states(first, second, request, encode_sd15("a red circle", None))


def test_whatever_the_request(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    first, second = make_engine(), make_engine()
    requests: list[dict[str, Any]] = [
        {},
        {"image": CIRCLE, "strength": 0.6, "sampler": "euler_a"},
        {"denoising_end": 0.6, "output": "latents", "sampler": "dpmpp_2m_sde"},
        {"denoising_start": 0.4, "latents": NOISY, "sampler": "unipc"},
        {"guidance_rescale": 0.7, "guidance_start": 0.2, "guidance_end": 0.6, "sampler": "dpmpp_2m_beta"},
    ]
    for changes in requests:
        check_states(first, second, reproducible(**changes), encode_sd15("x"))


def test_lanes_that_keep_part_of_an_image(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    first, second = make_engine(), make_engine()
    requests: list[dict[str, Any]] = [
        {"sampler": "euler_a"},
        {"sampler": "unipc", "strength": 0.8},
        {"sampler": "pndm", "checkpoint": "inpainting", "strength": 0.8},
    ]
    for changes in requests:
        request = reproducible(image=CIRCLE, mask=HALF, **changes)
        check_states(first, second, request, encode_sd15("x"))
    request = reproducible(image=CIRCLE, mask=HALF, sampler="unipc")
    progress, _ = events_of(first, request, encode_sd15("x"))
    state = states_of(progress)[3]
    assert state.returned is not None
    for returned in (None, state.returned[:3]):
        bad = dataclasses.replace(state, returned=returned)
        assert "returned" in str(refusal(first, dataclasses.replace(request, resume=bad), encode_sd15("x")))


def test_a_refiner_that_keeps_part_of_an_image_goes_on(make_engine: MakeEngine, encode_sdxl: Encode) -> None:
    first, second = make_engine(), make_engine()
    text = encode_sdxl("a red circle")
    shared = {"sampler": "euler_a", "steps": 10, "image": CIRCLE, "mask": HALF}
    _, base = events_of(first, reproducible(checkpoint="sdxl", denoising_end=0.5, output="latents", **shared), text)
    given = {"latents": base.latents, "generator_state": base.generator_state}
    check_states(first, second, reproducible(checkpoint="refiner", denoising_start=0.5, **given, **shared), text)


def test_a_refiner_goes_on_with_the_base_s_random_numbers(make_engine: MakeEngine, encode_sdxl: Encode) -> None:
    first, second = make_engine(), make_engine()
    text = encode_sdxl("a red circle")
    shared = {"sampler": "euler_a", "steps": 10}
    _, base = events_of(first, reproducible(checkpoint="sdxl", denoising_end=0.5, output="latents", **shared), text)
    given = {"latents": base.latents, "generator_state": base.generator_state}
    check_states(first, second, reproducible(checkpoint="refiner", denoising_start=0.5, **given, **shared), text)


def test_states_come_as_often_as_asked_and_are_not_throttled(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine(progress_interval_s=60.0)
    progress, _ = events_of(engine, ask(steps=9, state_every=4), encode_sd15("x"))
    assert [(event.step, event.state is not None) for event in progress] == [
        (1, False),
        (4, True),
        (8, True),
        (9, False),
    ]


def test_a_stopped_engine_leaves_every_lane_s_last_step(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    first, second = make_engine(), make_engine()
    text = encode_sd15("x")
    request = reproducible(sampler="dpmpp_2m")
    request = dataclasses.replace(request, state_every=1000)
    listener, unasked, unbegun = Listener(), Listener(), Listener()

    def stop_after_three_steps(item: Event | Exception) -> None:
        listener(item)
        if isinstance(item, Progress) and item.step == 3 and item.state is None:
            first.submit(dataclasses.replace(request, lane_id="unbegun"), text, unbegun)
            first._mailbox.tell(Stop())  # in the engine's own thread, which can't wait for its end

    first.submit(ask("unasked", reproducible=True, steps=50), text, unasked)
    first.submit(request, text, stop_after_three_steps)
    assert isinstance(listener.outcome(), EngineStopped)
    progress = [item for item in listener.items if isinstance(item, Progress)]
    assert [(event.step, event.state is not None) for event in progress] == [
        (1, False),
        (2, False),
        (3, False),
        (3, True),
    ]
    assert isinstance(unasked.outcome(), EngineStopped)
    assert not any(isinstance(item, Progress) and item.state for item in unasked.items)
    assert isinstance(unbegun.outcome(), EngineStopped)
    assert len(unbegun.items) == 1
    _, undisturbed = events_of(second, request, text)
    _, resumed = events_of(second, dataclasses.replace(request, resume=states_of(progress)[3]), text)
    assert same_bits(resumed, undisturbed)


def refusal(engine: Engine, request: DenoiseRequest, text: Conditioning) -> DarkroomError:
    listener = Listener()
    engine.submit(request, text, listener)
    outcome = listener.outcome()
    assert isinstance(outcome, StateRefused), outcome
    return outcome


def test_a_state_of_another_lane_is_refused(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    text = encode_sd15("x")
    request = reproducible(sampler="dpmpp_2m")
    progress, _ = events_of(engine, request, text)
    state = states_of(progress)[3]
    for changes, reason in (
        ({"seed": 8}, "seed"),
        ({"guidance_scale": 4.0}, "guidance_scale"),
        ({"sampler": "ddim"}, "table"),
        ({"steps": 7}, "table"),
        ({"denoising_end": 0.8}, "table"),
        ({"width": 72}, "shape"),
        ({"reproducible": False}, "reproducibility"),
    ):
        assert reason in str(refusal(engine, dataclasses.replace(request, resume=state, **changes), text))
    other_weights = dataclasses.replace(
        state, fingerprint=dataclasses.replace(state.fingerprint, checkpoint_hash="0" * 64)
    )
    assert "checkpoint_hash" in str(refusal(engine, dataclasses.replace(request, resume=other_weights), text))
    wider = make_engine(reproducible_rows=4)
    assert "reproducibility" in str(refusal(wider, dataclasses.replace(request, resume=state), text))
    engine.check()


def test_a_state_that_no_lane_could_be_in_is_refused(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    text = encode_sd15("x")
    request = reproducible(sampler="dpmpp_2m")
    progress, _ = events_of(engine, request, text)
    state = states_of(progress)[3]
    impossible: list[dict[str, Any]] = [
        {"step": 0},
        {"step": 6},
        {"step": -1},
        {"latents": NOISY.astype(np.float64)},
        {"latents": NOISY[:3]},
        {"past_samples": np.empty((0, 4, 8, 8), np.float32)},
        {"past_outputs": np.zeros((2, 4, 8, 8), np.float32)},
        {"generator_state": np.zeros(7, np.uint8)},
        {"generator_state": np.zeros(5056, np.float32)},
    ]
    for changes in impossible:
        refusal(engine, dataclasses.replace(request, resume=dataclasses.replace(state, **changes)), text)
    engine.check()


def test_bytes_that_are_no_state_are_refused(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    progress, _ = events_of(make_engine(), reproducible(), encode_sd15("x"))
    good = states_of(progress)[2].to_bytes()
    fields, arrays = unpack(good)
    older = {name: value for name, value in fields.items() if name != "seed"}
    for bad in (b"", b"x" * 99, good[:-1], good[8:], pack({}, {}), pack(older, arrays), pack(fields, {}), pack([], {})):
        with pytest.raises(StateRefused):
            LaneSnapshot.from_bytes(bad)
    LaneSnapshot.from_bytes(good)
