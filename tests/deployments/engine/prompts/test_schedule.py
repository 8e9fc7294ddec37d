"""The texts of a generation: which have to be encoded, and when each of them counts."""

import numpy as np
import pytest

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.schedule import PromptSchedule, PromptText, TextLora
from deployments.engine.types import PromptEmbedding, TextEncodingRequest


def asked(prompt: str, negative: str | None = "", **fields: object) -> TextEncodingRequest:
    return TextEncodingRequest("sdxl", prompt, negative, steps=4, **fields)  # type: ignore[arg-type]


def text(first: str, second: str | None = None, clip_skip: int = 0) -> PromptText:
    return PromptText("sdxl", first, clip_skip, second)


def test_a_prompt_that_never_changes_is_two_texts() -> None:
    schedule = PromptSchedule.of(asked("a (cat:1.2)", "b", clip_skip=1))
    assert schedule.texts == (text("a (cat:1.2)", clip_skip=1), text("b", clip_skip=1))
    assert PromptSchedule.of(asked("a", None)).texts == (text("a"),)


def test_each_prompt_changes_by_itself() -> None:
    schedule = PromptSchedule.of(asked("[a|b]", "[c:d:2]", prompt_2="x", negative_prompt_2="[:y:.75]"))
    assert [tuple(change) for change in schedule.changes] == [
        (0, (text("a", "x"),), text("c", "")),
        (1, (text("b", "x"),), text("c", "")),
        (2, (text("a", "x"),), text("d", "")),
        (3, (text("b", "x"),), text("d", "y")),
    ]
    assert len(schedule.texts) == 5


def test_steps_are_those_of_the_whole_schedule() -> None:
    """With a strength that leaves out the first six, and in a second pass, for which the first step is over."""
    schedule = PromptSchedule.of(asked("[a:b:0.5]", "[c|d]", skipped=6))
    assert [(change.step, change.positives[0].text) for change in schedule.changes] == [
        (6, "a"),
        (7, "a"),
        (8, "b"),
        (9, "b"),
    ]
    second = PromptSchedule.of(asked("[a:b:0.5]", "[c:d:9]", skipped=6, before=8))
    assert [tuple(change) for change in second.changes] == [
        (6, (text("b"),), text("c")),
        (7, (text("b"),), text("d")),
    ]


def test_a_conditioning_shares_what_comes_again() -> None:
    schedule = PromptSchedule.of(asked("[a|b]", "c"))
    embeddings = {one: PromptEmbedding(np.full((77, 2), index)) for index, one in enumerate(schedule.texts)}
    conditioning = schedule.conditioning(embeddings)
    assert conditioning.positive is embeddings[text("a")]
    assert [(edit.step, edit.positive) for edit in conditioning.edits] == [
        (1, embeddings[text("b")]),
        (2, embeddings[text("a")]),
        (3, embeddings[text("b")]),
    ]
    assert {id(edit.negative) for edit in conditioning.edits} == {id(conditioning.negative)}
    assert (conditioning.tokens, conditioning.filled_up) == (77, False)


def test_prompts_that_are_composed_change_each_by_itself() -> None:
    schedule = PromptSchedule.of(asked("[a|b] :2 AND c AND [d:e:3]:-0.5", "x AND y"))
    assert schedule.weights == (2.0, 1.0, -0.5)
    # (the space before a weight is A1111's to take away, and the one behind AND the tokenizer's)
    read = [[text.text.strip() for text in change.positives] for change in schedule.changes]
    assert read == [["a", "c", "d"], ["b", "c", "d"], ["a", "c", "d"], ["b", "c", "e"]]
    assert {change.negative for change in schedule.changes} == {text("x AND y")}
    embeddings = {one: PromptEmbedding(np.full((77, 2), index)) for index, one in enumerate(schedule.texts)}
    conditioning = schedule.conditioning(embeddings)
    assert conditioning.weights == schedule.weights
    assert conditioning.composed == tuple(embeddings[one] for one in schedule.changes[0].positives[1:])
    assert [edit.composed for edit in conditioning.edits] == [
        tuple(embeddings[one] for one in change.positives[1:]) for change in schedule.changes[1:]
    ]


def test_regions_have_texts_of_their_own() -> None:
    """In both encoders, changing by themselves; AND is a word in them."""
    request = asked("a", "n", prompt_2="x", regions=("[b:c:2] <lora:l:1>", "d AND e"))
    schedule = PromptSchedule.of(request)
    assert [tuple(change) for change in schedule.changes] == [
        (0, (text("a", "x"), text("b "), text("d AND e")), text("n")),
        (2, (text("a", "x"), text("c "), text("d AND e")), text("n")),
    ]
    assert (schedule.weights, schedule.regions) == ((1.0, 1.0, 1.0), 2)
    embeddings = {one: PromptEmbedding(np.full((77, 2), index)) for index, one in enumerate(schedule.texts)}
    conditioning = schedule.conditioning(embeddings)
    assert conditioning.composed == (embeddings[text("b ")], embeddings[text("d AND e")])
    assert conditioning.edits[0].composed[0] is embeddings[text("c ")]
    for region, field in ((text("d AND e"), "regions.1.prompt"), (text("a", "x"), "prompt")):
        assert schedule.in_field(InvalidRequest("is long", "text"), region).field == field
    assert schedule.in_field(InvalidRequest("is long", "second"), text("a", "x")).field == "prompt_2"
    for prompt, bad in (("(" * 40, "regions.0.prompt"), ("a", "prompt")):
        with pytest.raises(InvalidRequest) as refused:
            PromptSchedule.of(asked("a" if bad != "prompt" else "a AND b", regions=(prompt,)))
        assert refused.value.field == bad


def test_regions_may_have_loras_of_their_own() -> None:
    of_image, own = (TextLora("image", 1.0, "a"),), (TextLora("own", 0.5, "b"),)
    request = asked("a", "n", regions=("a", "b"))
    (change,) = PromptSchedule.of(request, of_image, [own, of_image]).changes
    assert [one.loras for one in change.all] == [of_image, own, of_image, of_image]
    (change,) = PromptSchedule.of(request, of_image).changes
    assert [one.loras for one in change.all] == [of_image] * 4


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "prompt_2", "negative_prompt_2"])
def test_a_refusal_names_its_field(field: str) -> None:
    fields = {"prompt": "a", "negative_prompt": "b", "prompt_2": "c", "negative_prompt_2": "d"}
    with pytest.raises(InvalidRequest) as refused:
        PromptSchedule.of(TextEncodingRequest(checkpoint="sdxl", **{**fields, field: "(a:99)"}))  # type: ignore[arg-type]
    assert refused.value.field == field

    schedule = PromptSchedule.of(TextEncodingRequest(checkpoint="sdxl", **fields))  # type: ignore[arg-type]
    of_encoder = InvalidRequest("takes too much", "second" if field.endswith("_2") else "text")
    told = schedule.in_field(of_encoder, text("b", "d") if "negative" in field else text("a", "c"))
    assert (told.field, told.message) == (field, f"{field} takes too much")


def test_what_both_encoders_read_is_the_prompt_s_fault() -> None:
    schedule = PromptSchedule.of(asked("a", "b"))
    assert schedule.in_field(InvalidRequest("takes too much", "second"), text("b")).field == "negative_prompt"
    other = InvalidRequest("clip_skip is 9", "clip_skip")
    assert schedule.in_field(other, text("a")) is other
