"""Cached steps: the lanes' pictures are those of diffusers' UNet whose deep features are held back by a hook."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, LoraSettings
from deployments.engine.denoising.step_cache import StepCache
from deployments.engine.denoising.unet_inputs import UnetForward, UnetInputs
from deployments.engine.engine import Engine
from deployments.engine.errors import EngineStopped, InvalidRequest, StateRefused
from deployments.engine.lanes.snapshot import LaneSnapshot
from deployments.engine.mailbox import Stop
from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import (
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    Event,
    Progress,
    PromptEdit,
)
from tests.deployments.engine.denoising.parity import assert_close, encode, reference, seeded
from tests.deployments.engine.listening import Listener, ask
from tests.loras import UNET_LAYERS, merged, random_updates, write_kohya
from tests.tiny_checkpoints import write_shallow_sd15

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
Work = tuple[DenoiseRequest, Conditioning]
RunTogether = Callable[[Engine, list[Work]], list[DenoiseResult]]

SIZE = 64


@contextmanager
def deep_features_of(unet: Any, whole: Callable[[int], bool]) -> Iterator[None]:
    """The way up's last layer gets what it got at the last whole evaluation; all the rest is computed."""
    block = unet.up_blocks[-1]
    layer = (block.attentions if hasattr(block, "attentions") else block.resnets)[-2]
    evaluation, kept = count(), []

    def hold_back(_layer: Any, _inputs: Any, output: Any) -> Any:
        if whole(next(evaluation)):
            kept[:] = [output]
            return None
        return kept[0]

    handle = layer.register_forward_hook(hold_back)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def start(
    tiny_sd15: Path, tiny_sdxl: Path, tiny_sdxl_refiner: Path, sd15_pipeline: Any, tmp_path_factory: Any
) -> Iterator[Callable[..., Engine]]:
    folder = tmp_path_factory.mktemp("loras")
    write_kohya(folder / "style.safetensors", {"unet": random_updates(sd15_pipeline.unet, UNET_LAYERS, seed=1)})
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
        "refiner": CheckpointSpec(family="sdxl-refiner", source=str(tiny_sdxl_refiner)),
    }
    engines: list[Engine] = []

    def start(**settings: int) -> Engine:
        chosen = EngineSettings(device="cpu", resident_checkpoints=3, **settings)
        engines.append(Engine(chosen, catalogue, loras=LoraSettings(folder=str(folder))))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="module")
def engine(start: Callable[..., Engine]) -> Engine:
    return start(cpu_threads=1)


@pytest.fixture(scope="module")
def large_buckets(start: Callable[..., Engine]) -> Engine:
    """For reproducible lanes, each of whose batches two threads share."""
    return start(cpu_threads=2, reproducible_rows=16)


def lane(lane_id: str, sampler: str, step_cache: int | None, **changes: Any) -> DenoiseRequest:
    seed = sum(lane_id.encode())
    asked = {"sampler": sampler, "step_cache": step_cache, "seed": seed, "output": "latents", "steps": 7}
    return ask(lane_id, **asked | changes)


def by_diffusers(pipe: Any, request: DenoiseRequest, **options: Any) -> torch.Tensor:
    every = request.step_cache
    caching = deep_features_of(pipe.unet, lambda n: n % every == 0) if every else nullcontext()
    with caching:
        return reference(pipe, request, seeded(request), height=SIZE, width=SIZE, **options)


def test_eight_unlike_lanes(
    engine: Engine, large_buckets: Engine, run_together: RunTogether, sd15_pipeline: Any
) -> None:
    """Each by itself, then all at once."""
    style = (Lora("style", 0.8),)
    lanes = [
        lane("plain", "dpmpp_2m", 2),
        lane("long", "euler", 5, steps=11),
        lane("of two evaluations a step", "heun", 3, steps=5),
        lane("noisy", "euler_a", 2),
        lane("unguided", "ddim", 3, guidance_scale=1.0),
        lane("not cached", "dpmpp_2m", None),
        lane("with a look back", "unipc", 4, guidance_rescale=0.5),
        lane("with a LoRA", "dpmpp_2m_karras", 3, loras=style),
    ]
    pipes = {one.lane_id: sd15_pipeline for one in lanes}
    unet = merged(sd15_pipeline.unet, (random_updates(sd15_pipeline.unet, UNET_LAYERS, seed=1), 0.8))
    pipes["with a LoRA"] = type(sd15_pipeline)(
        **{**sd15_pipeline.components, "unet": unet}, requires_safety_checker=False
    )
    pipes["with a LoRA"].set_progress_bar_config(disable=True)
    expected = {
        one.lane_id: by_diffusers(pipes[one.lane_id], one, guidance_rescale=one.guidance_rescale) for one in lanes
    }
    work = [(one, encode(sd15_pipeline, one)) for one in lanes]
    assert_close([run_together(engine, [item])[0] for item in work], expected)
    together = [(dataclasses.replace(request, reproducible=True), text) for request, text in work]
    assert_close(run_together(large_buckets, together), expected)
    stats = large_buckets.stats()
    assert stats.lane_steps_total > 1.5 * stats.steps_total, "the lanes did not share their steps"


def test_base_and_refiner(
    engine: Engine, run_together: RunTogether, sdxl_pipeline: Any, tiny_sdxl_refiner: Path
) -> None:
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_sdxl_refiner,
        text_encoder_2=sdxl_pipeline.text_encoder_2,
        tokenizer_2=sdxl_pipeline.tokenizer_2,
        dtype=torch.float32,
        add_watermarker=False,
    )
    refiner.set_progress_bar_config(disable=True)
    base = lane("base", "euler", 2, checkpoint="sdxl", steps=10, denoising_end=0.5)
    handed_over = by_diffusers(sdxl_pipeline, base, denoising_end=0.5)
    (made,) = run_together(engine, [(base, encode(sdxl_pipeline, base))])
    assert_close([made], {"base": handed_over})
    refining = lane("refiner", "euler", 3, checkpoint="refiner", steps=10, denoising_start=0.5, latents=made.latents)
    refining = dataclasses.replace(refining, seed=base.seed, generator_state=made.generator_state)
    with deep_features_of(refiner.unet, lambda n: n % 3 == 0):
        expected = reference(refiner, refining, seeded(refining), denoising_start=0.5, image=handed_over[None])
    results = run_together(engine, [(refining, encode(sdxl_pipeline, base)), (base, encode(sdxl_pipeline, base))])
    assert_close(results, {"refiner": expected, "base": handed_over})


@pytest.mark.parametrize("name", ["tiny_sd15", "tiny_lcm", "tiny_sdxl", "tiny_sdxl_refiner", "of one level"])
def test_the_outermost_layers_on_features_that_were_kept(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of texts that are filled up, too."""
    folder = write_shallow_sd15(tmp_path / "sd15") if name == "of one level" else request.getfixturevalue(name)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").requires_grad_(False)
    config, random, forward, cache = unet.config, torch.Generator().manual_seed(3), UnetForward(unet), StepCache(unet)

    def inputs(timestep: float) -> UnetInputs:
        sdxl = config.addition_embed_type is not None
        ids = 5 if "refiner" in name else 6
        pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim if sdxl else 0
        return UnetInputs(
            sample=torch.randn(3, 4, 8, 8, generator=random),
            timesteps=torch.tensor([timestep, timestep - 40, timestep + 3]),
            hidden_states=torch.randn(3, 9, config.cross_attention_dim, generator=random),
            mask=torch.tensor([[1.0] * n + [0.0] * (9 - n) for n in (9, 4, 7)]),
            guidance_embedding=torch.randn(3, config.time_cond_proj_dim) if config.time_cond_proj_dim else None,
            text_embeds=torch.randn(3, pooled, generator=random) if sdxl else None,
            time_ids=torch.full((3, ids), 64.0) if sdxl else None,
        )

    before, after = inputs(700.0), inputs(660.0)
    with deep_features_of(unet, [True, False].__getitem__):
        outputs = [forward(*one.all) for one in (before, after)]
    assert cache.possible
    with cache.keeping():
        assert torch.equal(forward(*before.all), outputs[0])
    deep = cache.take()
    assert deep.shape == (3, config.block_out_channels[0], 8, 8)
    assert torch.allclose(cache.shallow(after, deep), outputs[1], rtol=0, atol=1e-6)
    assert not torch.allclose(forward(*after.all), outputs[1], rtol=0, atol=1e-3)


def test_nobody_elses_cache_is_in_a_lanes_bits(
    large_buckets: Engine, run_together: RunTogether, sd15_pipeline: Any
) -> None:
    lanes = [
        lane("every other", "dpmpp_2m", 2, reproducible=True),
        lane("seldom", "euler_a", 5, reproducible=True, steps=9),
        lane("uncached", "dpmpp_2m", None, reproducible=True),
        lane("alone for a time", "ddim", 3, reproducible=True, guidance_end=0.5),
    ]
    work = [(one, encode(sd15_pipeline, one)) for one in lanes]
    together = run_together(large_buckets, work)
    for item, result in zip(work, together, strict=True):
        (alone,) = run_together(large_buckets, [item])
        assert alone.latents is not None
        assert result.latents is not None
        assert np.array_equal(alone.latents, result.latents), item[0].lane_id


def shallow_steps(engine: Engine, run_together: RunTogether, *work: Work) -> int:
    before = engine.stats().shallow_steps_total
    run_together(engine, list(work))
    return engine.stats().shallow_steps_total - before


def test_which_steps_are_shallow(engine: Engine, run_together: RunTogether, encode_sd15: Encode) -> None:
    text, other = encode_sd15("a red circle"), encode_sd15("a ring")
    asked = lane("one", "euler", 3)
    assert shallow_steps(engine, run_together, (dataclasses.replace(asked, step_cache=None), text)) == 0
    assert shallow_steps(engine, run_together, (asked, text)) == 4  # of WssWssW
    assert shallow_steps(engine, run_together, (dataclasses.replace(asked, guidance_end=0.3), text)) == 4  # WsWssWs
    edits = tuple(PromptEdit(step, other.positive, other.negative) for step in (2, 3, 6))
    assert shallow_steps(engine, run_together, (asked, dataclasses.replace(text, edits=edits))) == 3  # WsWWssW
    in_turn = tuple(PromptEdit(step, *((other, text)[step % 2].positive, text.negative)) for step in range(1, 7))
    assert shallow_steps(engine, run_together, (asked, dataclasses.replace(text, edits=in_turn))) == 0


def events_of(engine: Engine, request: DenoiseRequest, text: Conditioning) -> tuple[list[Progress], DenoiseResult]:
    listener = Listener()
    engine.submit(request, text, listener)
    *progress, result = listener.items if listener.outcome() else ()
    assert isinstance(result, DenoiseResult), result
    return [event for event in progress if isinstance(event, Progress)], result


def states_of(progress: Sequence[Event | Exception]) -> dict[int, LaneSnapshot]:
    """By the step that they were told with; as they come out of a store."""
    told = [item for item in progress if isinstance(item, Progress)]
    return {event.step: LaneSnapshot.from_bytes(event.state.to_bytes()) for event in told if event.state is not None}


@pytest.mark.parametrize("sampler", ["euler_a", "unipc", "heun"])
def test_a_lane_goes_on_from_its_last_whole_step(make_engine: MakeEngine, encode_sd15: Encode, sampler: str) -> None:
    first, second, text = make_engine(), make_engine(), encode_sd15("x")
    request = lane("one", sampler, 3, steps=8, reproducible=True, state_every=1)
    progress, undisturbed = events_of(first, request, text)
    states = states_of(progress)
    assert sorted(states) == list(range(3, progress[-1].steps, 3))
    for step, state in states.items():
        assert state.step == step
        rest, result = events_of(second, dataclasses.replace(request, resume=state), text)
        assert len(rest) == progress[-1].steps - step
        assert result.latents is not None
        assert undisturbed.latents is not None
        assert result.latents.tobytes() == undisturbed.latents.tobytes(), step


def test_states_are_told_at_the_first_whole_step_that_they_are_due_at(
    make_engine: MakeEngine, encode_sd15: Encode
) -> None:
    progress, _ = events_of(make_engine(), lane("one", "euler", 3, steps=20, state_every=4), encode_sd15("x"))
    assert sorted(states_of(progress)) == [6, 9, 12, 18]


@pytest.mark.parametrize(("stopped_after", "goes_on_from"), [(2, None), (3, 3), (5, 3)])
def test_a_stopped_engine_leaves_the_last_whole_step(
    make_engine: MakeEngine, encode_sd15: Encode, stopped_after: int, goes_on_from: int | None
) -> None:
    first, text = make_engine(), encode_sd15("x")
    request = lane("one", "dpmpp_2m_sde", 3, steps=8, reproducible=True, state_every=1000)
    listener = Listener()

    def stop(item: Event | Exception) -> None:
        listener(item)
        if isinstance(item, Progress) and item.step == stopped_after and item.state is None:
            first._mailbox.tell(Stop())  # in the engine's own thread, which can't wait for its end

    first.submit(request, text, stop)
    assert isinstance(listener.outcome(), EngineStopped)
    states = [state.step for state in states_of(listener.items).values()]
    assert states == ([] if goes_on_from is None else [goes_on_from])
    if goes_on_from is not None:
        second = make_engine()
        _, undisturbed = events_of(second, request, text)
        state = states_of(listener.items)[stopped_after]
        _, resumed = events_of(second, dataclasses.replace(request, resume=state), text)
        assert np.array_equal(resumed.latents, undisturbed.latents)


def refusal(engine: Engine, request: DenoiseRequest, text: Conditioning) -> Event | Exception:
    listener = Listener()
    engine.submit(request, text, listener)
    return listener.outcome()


def test_what_is_refused(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine, text = make_engine(), encode_sd15("x")
    request = lane("one", "euler", 2, reproducible=True, state_every=1)
    progress, _ = events_of(engine, request, text)
    state = states_of(progress)[2]
    between = dataclasses.replace(state, step=3)
    for changes, kind, reason in (
        ({"step_cache": 1}, InvalidRequest, "step_cache is 1"),
        ({"resume": between}, StateRefused, "before a shallow step"),
        ({"resume": state, "step_cache": 3}, StateRefused, "another step_cache"),
        ({"resume": state, "step_cache": None}, StateRefused, "another step_cache"),
    ):
        refused = refusal(engine, dataclasses.replace(request, **changes), text)
        assert isinstance(refused, kind)
        assert reason in str(refused)


def test_nothing_is_kept_of_a_step_that_no_shallow_one_follows(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    engine, text = make_engine(), encode_sd15("x")
    kept: list[int | None] = []

    def listen(item: Event | Exception) -> None:
        if isinstance(item, Progress):
            deep = engine._loop.roster.active[0].deep
            kept.append(None if deep is None else deep.nbytes)
        listener(item)

    listener = Listener()
    engine.submit(lane("one", "euler", 3, steps=8), text, listen)
    assert isinstance(listener.outcome(), DenoiseResult)
    of_two_rows = 2 * 8 * 8 * 8 * 4
    assert kept == [of_two_rows, of_two_rows, None, of_two_rows, of_two_rows, None, of_two_rows, None]
    footprint = engine._loop.memory._footprints["sd15"]
    assert footprint.deep * 64 == of_two_rows
    assert footprint.lanes(engine._settings, 64) > 64 * footprint.lane(64) + 8 * of_two_rows
