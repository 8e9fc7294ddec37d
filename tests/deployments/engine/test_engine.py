"""The loop's promises: bits within a bucket, joining, leaving, failing alone, flat memory."""

import asyncio
import dataclasses
import gc
import resource
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from deployments.engine.batch import Batch
from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.device import release_memory
from deployments.engine.engine import Engine
from deployments.engine.errors import (
    Cancelled,
    CheckpointError,
    DarkroomError,
    DeadlineExceeded,
    EngineStopped,
    InvalidRequest,
    NumericalFailure,
    OutOfDeviceMemory,
    UnknownCheckpoint,
)
from deployments.engine.lanes.lane import Lane
from deployments.engine.mailbox import Stop
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Event, Priority, Progress
from tests.deployments.engine.checkpoints.checkpoint_loading import change_unet
from tests.deployments.engine.listening import Listener, ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]


def unlike_neighbours(encode: Encode) -> list[tuple[DenoiseRequest, Conditioning]]:
    return [
        (ask(f"n{n}", seed=n, steps=4 + n, guidance_scale=2.0 + n, sampler=sampler), encode(f"neighbour {n}"))
        for n, sampler in enumerate(["ddim", "dpmpp_2m", "euler_a", "heun", "unipc", "pndm", "lms"])
    ]


@pytest.mark.parametrize("size", [(64, 64), (72, 40)])
def test_within_a_bucket_the_bits_do_not_depend_on_the_neighbours(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, size: tuple[int, int]
) -> None:
    width, height = size
    engine = make_engine(max_rows=16, reproducible_rows=8)
    request = ask(reproducible=True, sampler="dpmpp_2m_sde", width=width, height=height)
    text = encode_sd15("a red circle")
    alone = run_together(engine, [(request, text)])[0]
    neighbours = [
        (dataclasses.replace(other, reproducible=True, width=width, height=height), conditioning)
        for other, conditioning in unlike_neighbours(encode_sd15)
    ]
    for order in (neighbours[:3], neighbours[3:]):
        among = run_together(engine, [*order, (request, text)])[-1]
        assert among.image is not None
        assert alone.image is not None
        assert among.image.tobytes() == alone.image.tobytes()
        assert among.reproducibility == "bucket:8"
    latents = dataclasses.replace(request, output="latents")
    first = run_together(engine, [(latents, text)])[0].latents
    second = run_together(engine, [*neighbours, (latents, text)])[-1].latents
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()


def test_a_short_lane_that_joins_behind_four_long_ones_finishes_first(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    engine, text = make_engine(), encode_sd15("x")
    run_together(engine, [(ask("before", steps=5), text)])  # its sampler's table is known then
    ended: list[str] = []
    listeners = {name: Listener() for name in ("short", "long0", "long1", "long2", "long3")}

    def sink(name: str, item: Event | Exception) -> None:
        listeners[name](item)
        if isinstance(item, DenoiseResult):
            ended.append(name)
        elif name == "long0" and isinstance(item, Progress) and item.step == 2:
            engine.submit(ask("short", steps=5), text, partial(sink, "short"))

    for name in listeners:
        if name != "short":
            engine.submit(ask(name, steps=25), text, partial(sink, name))
    assert all(isinstance(listener.outcome(), DenoiseResult) for listener in listeners.values())
    assert ended[0] == "short"


@pytest.mark.parametrize("checkpoint", ["sd15", "inpainting", "sdxl", "refiner"])
def test_a_warm_up_draws_an_image_of_every_architecture(make_engine: MakeEngine, checkpoint: str) -> None:
    engine = make_engine()
    engine.warm_up(checkpoint, 72, 64).result()
    stats = engine.stats()
    assert (stats.steps_total, stats.lane_steps_total, stats.lanes_active) == (2, 2, 0)
    [key] = engine._loop.row_seconds
    assert (key.checkpoint, key.width, key.height, key.tokens) == (checkpoint, 9, 8, 77)


def test_a_warm_up_that_fails_says_why(tiny_sd15: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sd15"
    shutil.copytree(tiny_sd15, folder)
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    catalogue = {"sd15": CheckpointSpec(family="sd15", source=str(folder))}
    engine = Engine(EngineSettings(device="cpu", cpu_threads=1), catalogue)
    engine.start()
    with pytest.raises(UnknownCheckpoint):
        engine.warm_up("another", 64, 64)
    with pytest.raises(CheckpointError, match="found no weights"):
        engine.warm_up("sd15", 64, 64).result()
    engine.stop()


def test_lanes_pay_for_the_device_by_their_rows(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    text = encode_sd15("x")
    listeners = [Listener() for _ in range(3)]
    for n, listener in enumerate(listeners):
        engine.submit(ask(f"{n}", steps=6 + n), text, listener)
    paid = 0.0
    for listener in listeners:
        result = listener.outcome()
        assert isinstance(result, DenoiseResult)
        last = listener.items[-2]
        assert isinstance(last, Progress)
        assert 0 < last.device_s < last.step_s
        assert result.timings.device_s == pytest.approx(last.device_s + result.timings.decode_s)
        paid += last.device_s
    assert paid == pytest.approx(engine.stats().step_seconds_total)


def test_progress_and_previews(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    listener = Listener()
    engine.submit(ask(preview_every=2), encode_sd15("x"), listener)
    assert isinstance(listener.outcome(), DenoiseResult)
    progress = [item for item in listener.items if isinstance(item, Progress)]
    assert [event.step for event in progress] == [1, 2, 3, 4, 5, 6]
    assert {event.steps for event in progress} == {6}
    previews = {event.step: event.preview for event in progress if event.preview is not None}
    assert set(previews) == {2, 4}
    assert all(preview.shape == (8, 8, 3) and preview.dtype == np.uint8 for preview in previews.values())


def test_progress_is_throttled_but_the_last_step_is_told(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine(progress_interval_s=60.0)
    listener = Listener()
    engine.submit(ask(steps=8), encode_sd15("x"), listener)
    assert isinstance(listener.outcome(), DenoiseResult)
    assert [item.step for item in listener.items if isinstance(item, Progress)] == [1, 8]


def test_a_cancelled_lane_leaves_at_the_next_step(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    listener, other = Listener(), Listener()
    text = encode_sd15("x")
    engine.submit(ask("cancelled", steps=300, sampler="pndm"), text, listener)
    engine.submit(ask("other", steps=20), text, other)
    listener.wait_for(lambda items: len(items) >= 3)
    engine.cancel("cancelled")
    assert isinstance(listener.outcome(), Cancelled)
    assert isinstance(other.outcome(), DenoiseResult)
    assert engine.stats().failures == {"cancelled": 1}
    assert engine.stats().lanes_active == 0


async def test_closing_the_stream_cancels_the_lane(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    stream = engine.stream(ask(steps=300, sampler="pndm"), encode_sd15("x"))
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    follower = [event async for event in engine.stream(ask("next", steps=2), encode_sd15("y"))]
    assert isinstance(follower[-1], DenoiseResult)
    assert engine.stats().failures == {"cancelled": 1}


async def test_a_stream_never_blocks_the_event_loop(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    """Each forward waits until the loop that reads the stream has run something else: blocked, neither would go on."""
    loop = asyncio.get_running_loop()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        beats += 1

    def wait_for_a_beat(*_: object) -> None:
        asyncio.run_coroutine_threadsafe(beat(), loop).result(timeout=30)

    engine = make_engine()
    engine.preload("sd15").result()
    engine._loop.residency["sd15"].weights.unet.register_forward_pre_hook(wait_for_a_beat)
    events = [event async for event in engine.stream(ask(steps=5), encode_sd15("x"))]
    engine.stop()
    assert isinstance(events[-1], DenoiseResult)
    assert beats == 5


def test_a_deadline_ends_a_lane_waiting_or_running(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    listener = Listener()
    engine.submit(ask(steps=300, sampler="pndm", timeout_s=0.05), encode_sd15("x"), listener)
    assert isinstance(listener.outcome(), DeadlineExceeded)


def test_a_poisoned_lane_fails_alone(make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode) -> None:
    engine = make_engine()
    good = encode_sd15("fine")
    poison = dataclasses.replace(good.positive, hidden_states=np.full_like(good.positive.hidden_states, np.nan))
    beside = Listener()
    poisoned = Listener()
    engine.submit(ask("beside", steps=8), good, beside)
    engine.submit(ask("poisoned", steps=8), Conditioning(poison, good.negative), poisoned)
    assert isinstance(poisoned.outcome(), NumericalFailure)
    among = beside.outcome()
    assert isinstance(among, DenoiseResult)
    alone = run_together(engine, [(ask("alone", steps=8), good)])[0]
    assert among.image is not None
    assert alone.image is not None
    assert np.abs(among.image.astype(int) - alone.image.astype(int)).max() <= 1


def test_an_embedding_of_another_checkpoint_is_refused(make_engine: MakeEngine, encode_sdxl: Encode) -> None:
    engine = make_engine()
    listener = Listener()
    text = encode_sdxl("x")
    narrow = dataclasses.replace(text.positive, hidden_states=text.positive.hidden_states[:, :8])
    engine.submit(ask(), Conditioning(narrow, None), listener)
    assert isinstance(listener.outcome(), InvalidRequest)
    wide = Listener()
    engine.submit(ask(), text, wide)
    assert isinstance(wide.outcome(), InvalidRequest), "only a refiner takes a part of another's embedding"


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Injects the device's out of memory into every step of more than `rows` rows; returns the tried buckets."""
    step = Denoiser.step
    tried: list[int] = []

    def limited(self: Denoiser, batch: Batch[Lane]) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append(batch.bucket)
        if batch.bucket > rows:
            raise torch.OutOfMemoryError("injected")
        return step(self, batch)

    monkeypatch.setattr(Denoiser, "step", limited)
    return tried


def test_out_of_memory_ends_in_a_smaller_batch(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    work = unlike_neighbours(encode_sd15)
    expected = run_together(engine, work)
    tried = out_of_memory_above(4, monkeypatch)
    results = run_together(engine, work)
    assert max(tried) > 4
    assert sum(bucket > 4 for bucket in tried) <= 4, "the limit is remembered"
    for result, want in zip(results, expected, strict=True):
        assert result.image is not None
        assert want.image is not None
        assert np.abs(result.image.astype(int) - want.image.astype(int)).max() <= 1


def test_out_of_memory_with_one_lane_fails_that_lane(
    make_engine: MakeEngine, encode_sd15: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    out_of_memory_above(1, monkeypatch)
    guided, unguided = Listener(), Listener()
    engine.submit(ask("guided"), encode_sd15("x"), guided)
    engine.submit(ask("unguided", guidance_scale=1.0), encode_sd15("x", None), unguided)
    assert isinstance(guided.outcome(), OutOfDeviceMemory)
    assert isinstance(unguided.outcome(), DenoiseResult)


def test_a_decode_that_overflows_is_never_a_black_image(
    make_engine: MakeEngine, encode_sd15: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(dtype="bfloat16")
    listener = Listener()
    engine.preload("sd15").result()
    vae = engine._loop.residency["sd15"].weights.vae
    decode = vae.decode
    widened: list[torch.dtype] = []

    def overflow(latents: torch.Tensor, **kwargs: Any) -> Any:
        widened.append(latents.dtype)
        decoded = decode(latents, **kwargs)
        return (decoded[0] * float("inf"),) if latents.dtype == torch.bfloat16 else decoded

    monkeypatch.setattr(vae, "decode", overflow)
    engine.submit(ask(), encode_sd15("x"), listener)
    outcome = listener.outcome()
    assert isinstance(outcome, DenoiseResult)
    assert widened == [torch.bfloat16, torch.float32]
    assert outcome.image is not None
    assert outcome.image.std() > 0
    assert vae.dtype == torch.bfloat16


def test_priority_parks_the_lower_lanes(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine(max_rows=2)
    text = encode_sd15("x")
    low, high = Listener(), Listener()
    engine.submit(ask("low", steps=60, priority=Priority.BATCH), text, low)
    low.wait_for(lambda items: len(items) >= 3)
    engine.submit(ask("high", steps=10, priority=Priority.INTERACTIVE), text, high)
    assert isinstance(high.outcome(), DenoiseResult)
    assert not low.ended
    assert isinstance(low.outcome(), DenoiseResult)


def test_checkpoints_take_turns_and_an_evicted_one_frees_its_memory(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    engine = make_engine(resident_checkpoints=1)
    text = encode_sd15("x")
    run_together(engine, [(ask(), text)])
    assert engine.stats().resident == ("sd15",)
    unet = weakref.ref(engine._loop.residency["sd15"].weights.unet)
    work = [(ask(f"{n}", checkpoint=("sd15", "sd15-twin")[n % 2], seed=3), text) for n in range(6)]
    results = run_together(engine, work)
    assert {result.checkpoint for result in results} == {"sd15", "sd15-twin"}
    images = {result.image.tobytes() for result in results if result.image is not None}
    assert len(images) <= 2, "the twins have the same weights; only the batch they ran in may differ in rounding"
    assert engine.stats().loads_total <= 4, "waiting lanes of one checkpoint run together, not turn by turn"
    run_together(engine, [(ask(checkpoint="sd15-twin"), text)])
    assert engine.stats().resident == ("sd15-twin",)
    assert engine._loop.residency["sd15-twin"].weights.unet is unet(), "a twin moves into the same models"
    engine.preload("inpainting").result()  # which has another architecture
    gc.collect()
    assert unet() is None


def test_unknown_and_broken_checkpoints(make_engine: MakeEngine, encode_sd15: Encode, tmp_path: Path) -> None:
    engine = make_engine()
    with pytest.raises(UnknownCheckpoint):
        engine.submit(ask(checkpoint="nowhere"), encode_sd15("x"), Listener())
    with pytest.raises(UnknownCheckpoint):
        engine.preload("nowhere")
    engine._catalogue["broken"] = engine._catalogue["sd15"].model_copy(update={"source": str(tmp_path)})
    listener = Listener()
    engine.submit(ask(checkpoint="broken"), encode_sd15("x"), listener)
    assert isinstance(listener.outcome(), CheckpointError)
    with pytest.raises(CheckpointError):
        engine.preload("broken").result()
    engine.check()


@pytest.mark.parametrize("refilling", [False, True])
def test_of_a_checkpoint_that_is_refused_nothing_stays(
    refilling: bool, tiny_sd15: Path, copy: Path, encode_sd15: Encode
) -> None:
    """Whoever keeps its error keeps none of the frames that had its models."""
    change_unet(copy, lambda tensors: tensors["conv_in.weight"].fill_(float("nan")))
    folders = {"sd15": tiny_sd15, "refused": copy}
    catalogue = {name: CheckpointSpec(family="sd15", source=str(folder)) for name, folder in folders.items()}
    engine = Engine(EngineSettings(device="cpu", cpu_threads=1, resident_checkpoints=1), catalogue)

    def unets() -> set[int]:
        return {id(of) for of in gc.get_objects() if type(of) is UNet2DConditionModel}

    engine.start()
    gc.collect()
    before = unets()
    gc.disable()
    try:
        errors: list[object] = []
        for preloads in (True, False):
            if refilling:
                engine.preload("sd15").result(timeout=60)
                assert unets() - before
            if preloads:
                errors.append(engine.preload("refused").exception(timeout=60))
            else:
                listener = Listener()
                engine.submit(ask(checkpoint="refused"), encode_sd15("x"), listener)
                errors.append(listener.outcome())
            assert isinstance(errors[-1], CheckpointError)
            assert unets() <= before
    finally:
        gc.enable()
        engine.stop()


def test_a_lane_that_was_cancelled_leaves_nothing_behind(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    """Its conditions hold weights, a ControlNet's for example, that others may need the room of."""
    engine = make_engine()
    listener = Listener()
    engine.submit(ask("leaving", steps=300, sampler="pndm"), encode_sd15("x"), listener)
    listener.wait_for(lambda items: len(items) >= 2)
    assert [of for of in gc.get_objects() if type(of) is Lane and of.request.lane_id == "leaving"]
    engine.cancel("leaving")
    assert isinstance(listener.outcome(), Cancelled)
    engine.preload("sd15").result(timeout=60)  # the engine's thread is done with the cancellation then
    gc.collect()
    assert not [of for of in gc.get_objects() if type(of) is Lane and of.request.lane_id == "leaving"]


def test_a_checkpoint_that_fails_to_load_for_no_foreseen_reason_ends_nothing(tiny_sd15: Path) -> None:
    def read(spec: CheckpointSpec) -> DenoiserTensors:
        raise RuntimeError("injected")

    catalogue = {"sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15))}
    engine = Engine(EngineSettings(device="cpu", cpu_threads=1), catalogue, read)
    engine.start()
    with pytest.raises(DarkroomError, match="'sd15' could not be loaded: RuntimeError"):
        engine.preload("sd15").result(timeout=60)
    engine.check()
    engine.stop()


def start_together(engine: Engine, text: Conditioning, lanes: Mapping[str, tuple[DenoiseRequest, Listener]]) -> None:
    """Submit lanes during a step of another one, so that their first steps are one."""
    begun, submitted = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        begun.set()
        assert submitted.wait(timeout=60)

    hook = engine._loop.residency["sd15"].weights.unet.register_forward_pre_hook(wait)
    engine.submit(ask("gate", steps=1, output="latents"), text, Listener())
    assert begun.wait(timeout=60)
    hook.remove()
    for request, listener in lanes.values():
        engine.submit(request, text, listener)
    submitted.set()


def test_an_interactive_image_is_not_held_up_by_the_decodes_of_a_batch(
    make_engine: MakeEngine, encode_sd15: Encode
) -> None:
    """Its whole way lies between the first and the second decode of four images that end together."""
    engine = make_engine()
    engine.preload("sd15").result()
    text = encode_sd15("x")
    ended: list[str] = []
    urgent = Listener()

    def arrive_meanwhile(*_: object) -> None:
        hook.remove()
        engine.submit(ask("urgent", steps=3, priority=Priority.INTERACTIVE), text, urgent)
        threading.Event().wait(0.5)  # a slow VAE: a sixteenth of the time has no room for its second decode

    def note(lane: Lane) -> None:
        ended.append(lane.request.lane_id)
        forget(lane)

    hook = engine._loop.residency["sd15"].weights.vae.decoder.register_forward_pre_hook(arrive_meanwhile)
    names = [f"{n}" for n in range(4)]
    lanes = {name: (ask(name, seed=int(name), steps=2, priority=Priority.BATCH), Listener()) for name in names}
    forget, engine._loop.queue._forget = engine._loop.queue._forget, note
    start_together(engine, text, lanes)
    for listener in (urgent, *(listener for _, listener in lanes.values())):
        assert isinstance(listener.outcome(), DenoiseResult)
    assert ended == ["gate", "0", "urgent", "1", "2", "3"]


def test_images_whose_steps_are_taken_are_decoded_before_the_end(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    engine.preload("sd15").result()
    decoder = engine._loop.residency["sd15"].weights.vae.decoder
    decoder.register_forward_pre_hook(lambda *_: engine._mailbox.tell(Stop()))
    lanes = {name: (ask(name, steps=2), Listener()) for name in ("a", "b", "c")}
    start_together(engine, encode_sd15("x"), lanes)
    for _, listener in lanes.values():
        assert isinstance(listener.outcome(), DenoiseResult)


def test_after_a_stop_everybody_is_told(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine = make_engine()
    listener = Listener()
    engine.submit(ask(steps=300, sampler="pndm"), encode_sd15("x"), listener)
    listener.wait_for(lambda items: len(items) >= 2)
    engine.stop()
    assert isinstance(listener.outcome(), EngineStopped)
    with pytest.raises(EngineStopped):
        engine.check()
    with pytest.raises(EngineStopped):
        engine.submit(ask(), encode_sd15("x"), Listener())


def test_a_lost_device_is_noticed(
    make_engine: MakeEngine, encode_sd15: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def lose(self: Denoiser, batch: Batch[Lane]) -> tuple[torch.Tensor, torch.Tensor]:
        raise torch.AcceleratorError("injected: an illegal memory access was encountered")

    monkeypatch.setattr(Denoiser, "step", lose)
    listener = Listener()
    engine.submit(ask(), encode_sd15("x"), listener)
    assert isinstance(listener.outcome(), EngineStopped)
    with pytest.raises(EngineStopped, match="illegal memory access"):
        engine.check()


def test_a_program_error_fails_the_lane_not_the_engine(
    make_engine: MakeEngine, encode_sd15: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    step = Denoiser.step

    def fail_for_one(self: Denoiser, batch: Batch[Lane]) -> tuple[torch.Tensor, torch.Tensor]:
        if any(lane.request.lane_id == "culprit" for lane in batch.lanes):
            raise RuntimeError("injected")
        return step(self, batch)

    monkeypatch.setattr(Denoiser, "step", fail_for_one)
    listeners = {name: Listener() for name in ("a", "culprit", "b", "c")}
    for name, listener in listeners.items():
        engine.submit(ask(name), encode_sd15("x"), listener)
    assert isinstance(listeners["culprit"].outcome(), DarkroomError)
    assert all(isinstance(listeners[name].outcome(), DenoiseResult) for name in "abc")
    engine.check()


def test_an_image_that_cannot_be_decoded_fails_alone(
    make_engine: MakeEngine, encode_sd15: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(decode_batch=4)
    engine.preload("sd15").result()
    vae = engine._loop.residency["sd15"].weights.vae
    decode = vae.decode
    tried: list[int] = []

    def fail_together_and_once_alone(latents: torch.Tensor, **kwargs: Any) -> Any:
        tried.append(len(latents))
        if len(latents) > 1 or tried.count(1) == 2:
            raise RuntimeError("injected")
        return decode(latents, **kwargs)

    monkeypatch.setattr(vae, "decode", fail_together_and_once_alone)
    listeners = [Listener() for _ in range(3)]
    for number, listener in enumerate(listeners):
        engine.submit(ask(f"{number}", seed=number), encode_sd15("x"), listener)
    outcomes = [listener.outcome() for listener in listeners]
    assert sum(isinstance(outcome, DenoiseResult) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, DarkroomError) for outcome in outcomes) == 1
    engine.check()


def test_500_generations_leave_memory_flat(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    engine = make_engine(max_rows=32, decode_batch=32)
    text = encode_sd15("x")

    def generate(count: int) -> None:
        for start in range(0, count, 50):
            run_together(engine, [(ask(f"{start + n}", steps=2, seed=n, width=32, height=32), text) for n in range(50)])

    generate(150)
    release_memory()  # what earlier tests freed and the allocator keeps is no part of either measurement
    before, objects = _resident_mib(), len(gc.get_objects())
    generate(500)
    release_memory()
    assert _resident_mib() - before < 16
    assert len(gc.get_objects()) - objects < 500
    assert engine.stats().images_total == 650


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
