"""Long prompts and prompts that change: what a lane is conditioned on, alone or beside lanes of other lengths."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from deployments.engine.engine import Engine
from deployments.engine.prompts.schedule import PromptSchedule
from deployments.engine.samplers.tables import sampler_table
from deployments.engine.types import (
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    PromptEdit,
    PromptEmbedding,
    TextEncodingRequest,
)
from tests.deployments.engine.lanes.test_snapshot import check_states, events_of, same_bits, states_of
from tests.deployments.engine.listening import ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]


def chunks(encode: Encode, *texts: str) -> PromptEmbedding:
    """Each text a chunk of 77 tokens."""
    parts = [encode(text, None).positive for text in texts]
    return PromptEmbedding(np.concatenate([part.hidden_states for part in parts]), parts[0].pooled)


def latents(**changes: Any) -> DenoiseRequest:
    return ask(output="latents", reproducible=True, state_every=1, **changes)


def drawn(engine: Engine, request: DenoiseRequest, text: Conditioning) -> DenoiseResult:
    return events_of(engine, request, text)[1]


@pytest.mark.parametrize(("attention", "checkpoint"), [("sdpa", "sd15"), ("sdpa", "sdxl"), ("sliced", "sd15")])
def test_the_unet_does_not_look_where_a_text_was_filled_up(
    attention: str, checkpoint: str, make_engine: MakeEngine, request: pytest.FixtureRequest
) -> None:
    """Attention to a text is the same as to the text twice over: so two chunks of the same are one without a mask."""
    encode: Encode = request.getfixturevalue(f"encode_{checkpoint}")
    long, short, twice = (chunks(encode, *texts) for texts in (("a", "red cat"), ("b",), ("b", "b")))
    engine = make_engine(attention=attention)
    asked = latents(checkpoint=checkpoint, steps=3)
    for filled, whole in (
        (Conditioning(long, short), Conditioning(long, twice)),
        (Conditioning(short, long), Conditioning(twice, long)),
    ):
        one, other = drawn(engine, asked, filled).latents, drawn(engine, asked, whole).latents
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    # and there is something to see in the second chunk
    plain = drawn(engine, asked, Conditioning(chunks(encode, "a"), short)).latents
    assert plain is not None
    assert np.abs(plain - drawn(engine, asked, Conditioning(long, short)).latents).max() > 1e-4


def test_no_bit_depends_on_neighbours_with_other_lengths(
    make_engine: MakeEngine, encode_sd15: Encode, run_together: RunTogether
) -> None:
    one, two, three = (chunks(encode_sd15, *"abc"[:count]) for count in (1, 2, 3))
    texts = [
        Conditioning(one, one),
        Conditioning(two, one),
        Conditioning(one, two),
        Conditioning(two, two),
        Conditioning(three, None),
        Conditioning(one, one, (PromptEdit(2, two, one), PromptEdit(3, one, one))),
    ]
    requests = [
        ask(
            f"lane {index}",
            output="latents",
            reproducible=True,
            steps=4,
            seed=index,
            guidance_scale=5.0 if text.negative else 1.0,
        )
        for index, text in enumerate(texts)
    ]
    engine = make_engine(reproducible_rows=8)
    work = list(zip(requests, texts, strict=True))
    for alone, together in zip(
        [drawn(engine, *one) for one in work], run_together(engine, [*work, *_others(work)]), strict=False
    ):
        assert same_bits(alone, together)


def _others(work: Sequence[tuple[DenoiseRequest, Conditioning]]) -> list[tuple[DenoiseRequest, Conditioning]]:
    return [(dataclasses.replace(one, lane_id=f"other {one.lane_id}", seed=99), text) for one, text in work]


def test_a_prompt_that_changes_goes_on_as_a_lane_with_the_other_prompt_would(
    make_engine: MakeEngine, encode_sd15: Encode
) -> None:
    before, after = encode_sd15("a red cat"), encode_sd15("a blue dog", "red")
    edited = dataclasses.replace(before, edits=(PromptEdit(2, after.positive, after.negative),))
    engine = make_engine()
    for sampler, switch in (("dpmpp_2m", 2), ("heun", 4), ("pndm", 3)):
        request = latents(sampler=sampler, steps=5)
        states = states_of(events_of(engine, request, before)[0])
        by_hand = drawn(engine, dataclasses.replace(request, resume=states[switch]), after)
        assert same_bits(drawn(engine, request, edited), by_hand)
        assert not same_bits(by_hand, drawn(engine, request, before))


IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
NOISY = np.random.default_rng(1).standard_normal((4, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("prompt", "of_prompt", "of_lane", "switch"),
    [
        # of seven steps the last five, over which the prompt counts
        ("[a:b:0.6]", {"steps": 5, "skipped": 2}, {"steps": 7, "image": IMAGE, "strength": 0.72}, 3),
        ("[a:b:3]", {"steps": 5, "skipped": 2}, {"steps": 7, "image": IMAGE, "strength": 0.72, "sampler": "heun"}, 6),
        # a base that begins with an image, and its refiner: six steps of ten, of which the refiner takes the last two
        ("[a:b:3]", {"steps": 6, "skipped": 4}, {"image": IMAGE, "strength": 0.6, "denoising_end": 0.8}, 3),
        ("[a:b:5]", {"steps": 6, "skipped": 4}, {"checkpoint": "refiner", "latents": NOISY, "denoising_start": 0.8}, 1),
        # a second pass: five steps of ten, after the four of the first
        ("[a:b:6]", {"steps": 5, "skipped": 5, "before": 4}, {"image": IMAGE, "strength": 0.5}, 2),
        ("[a:b:1.4]", {"steps": 5, "skipped": 5, "before": 4}, {"image": IMAGE, "strength": 0.5}, 2),
        ("[a:b:0.9]", {"steps": 5, "skipped": 5, "before": 4}, {"image": IMAGE, "strength": 0.5}, 0),
    ],
)
def test_a_prompt_changes_by_the_picture_s_whole_schedule(
    prompt: str,
    of_prompt: dict[str, int],
    of_lane: dict[str, Any],
    switch: int,
    make_engine: MakeEngine,
    encode_sdxl: Encode,
) -> None:
    """From the prompt to the step: `a` until `switch` evaluations of the lane, then as a lane of `b` goes on."""
    texts = {text: encode_sdxl(text) for text in "ab"}
    schedule = PromptSchedule.of(TextEncodingRequest("sdxl", prompt, None, **of_prompt))
    edited = schedule.conditioning({one: texts[one.text].positive for one in schedule.texts})
    request = latents(**{"checkpoint": "sdxl", "sampler": "euler", "steps": 10, "guidance_scale": 1.0, **of_lane})
    engine = make_engine()
    before, after = (Conditioning(texts[text].positive, None) for text in "ab")
    if switch:
        states = states_of(events_of(engine, request, before)[0])
        assert not same_bits(drawn(engine, request, edited), drawn(engine, request, before))
        request_after = dataclasses.replace(request, resume=states[switch])
    else:
        request_after = request
    assert same_bits(drawn(engine, request, edited), drawn(engine, request_after, after))


def test_turns_go_on_in_the_refiner(make_engine: MakeEngine, encode_sdxl: Encode) -> None:
    """Of a base that begins with an image at step three of nine: the refiner's only one, eight, is the sixth turn."""
    texts = {text: encode_sdxl(text).positive for text in "abc"}
    schedule = PromptSchedule.of(TextEncodingRequest("sdxl", "[a|b|c]", None, steps=6, skipped=3))
    turns = schedule.conditioning({one: texts[one.text] for one in schedule.texts})
    request = latents(
        checkpoint="refiner", latents=NOISY, steps=9, denoising_start=0.9, sampler="euler", guidance_scale=1.0
    )
    engine = make_engine()
    drawn_by = {text: drawn(engine, request, Conditioning(texts[text], None)) for text in "abc"}
    result = drawn(engine, request, turns)
    assert [text for text, other in drawn_by.items() if same_bits(result, other)] == ["c"]


def test_a_lane_whose_prompt_takes_turns_goes_on_elsewhere(make_engine: MakeEngine, encode_sd15: Encode) -> None:
    one, other = encode_sd15("a red cat"), chunks(encode_sd15, "a blue dog", "and more")
    edits = tuple(PromptEdit(step, (one.positive, other)[step % 2], one.negative) for step in range(1, 5))
    turns = dataclasses.replace(one, edits=edits)
    check_states(make_engine(), make_engine(), latents(steps=5, sampler="euler_a"), turns)


def test_a_refiner_begins_with_what_the_prompt_has_become(make_engine: MakeEngine, encode_sdxl: Encode) -> None:
    first, later = encode_sdxl("a red cat"), encode_sdxl("a blue dog")
    edited = dataclasses.replace(first, edits=(PromptEdit(3, later.positive, later.negative),))
    noisy = np.random.default_rng(0).standard_normal((4, 8, 8), np.float32)
    engine = make_engine()
    request = latents(checkpoint="refiner", denoising_start=0.5, latents=noisy, steps=10)
    assert same_bits(drawn(engine, request, edited), drawn(engine, request, later))


@pytest.mark.parametrize(
    ("sampler", "arguments", "steps"),
    [
        ("euler", {}, [0, 1, 2, 3, 4]),
        ("heun", {}, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        ("pndm", {}, [0, 0, 1, 2, 3, 4]),
        ("euler", {"denoising_end": 0.4}, [0, 1]),
        ("euler", {"denoising_start": 0.4}, [2, 3, 4]),
        ("euler", {"strength": 0.4}, [3, 4]),
    ],
)
def test_the_inference_steps_of_evaluations(sampler: str, arguments: dict[str, float], steps: list[int]) -> None:
    config = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "steps_offset": 1}
    table = sampler_table(config, sampler, 5, **arguments)
    assert len(table.inference_steps) == len(table.steps)
    assert list(table.inference_steps) == steps
