"""Every string is a prompt or gets one clear refusal, in linear time; what the marks mean is what A1111 documents."""

import math
import re
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import (
    MAX_DEPTH,
    MAX_TEXTS,
    LoraTag,
    composed_prompts,
    read_prompt,
    read_weights,
    without_comments,
)

# mostly marks: what a random text has too few of
MARKED = st.lists(
    st.sampled_from(
        ["(", ")", "[", "]", ":", "|", "\\", "<", ">", "1.3", "0.5", "3", " ", "BREAK", "a", "b c", ",", "<lora:x:1>"]
    )
    | st.characters(),
    max_size=60,
).map("".join)
UNMARKED = st.text(st.characters(exclude_characters="\\()[]:|<")).filter(lambda text: "BREAK" not in text)


def weighed(text: str) -> list[tuple[str, float]]:
    return [(piece.text, piece.weight) for piece in read_weights(text)]


# the examples of A1111's own documentation of parse_prompt_attention
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
             ("sky", 1.4641), (".", 1.1)],
        ),
    ],
)  # fmt: skip
def test_weights_as_a1111_documents_them(text: str, pieces: list[tuple[str, float]]) -> None:
    found = weighed(text)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a) b]", "a) b]"),
        ("a :) b", "a :) b"),
        ("5:1.5) b", "5:1.5) b"),
        ("(a:b)", "a:b"),
        ("(a:1.2.3)", "a:1.2.3"),
        ("a: b | c", "a: b | c"),
        (r"a\\b\:c", r"a\b:c"),
        ("a\\", "a"),
        ("", ""),
        ("[]()", ""),
    ],
)
def test_what_has_no_meaning_is_text(text: str, read: str) -> None:
    assert "".join(piece for piece, _ in weighed(text)) == read


# the examples of A1111's own documentation of get_learned_conditioning_prompt_schedules, and more; of ten steps
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("test", [(0, "test")]),
        ("a [b:3]", [(0, "a "), (3, "a b")]),
        ("a [b: 3]", [(0, "a "), (3, "a b")]),
        ("a [[[b]]:2]", [(0, "a "), (2, "a [[b]]")]),
        ("[(a:2):3]", [(0, ""), (3, "(a:2)")]),
        ("a [b : c : 1] d", [(0, "a b  d"), (1, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(0, "abe"), (1, "ace"), (2, "ade")]),
        ("a [unbalanced", [(0, "a [unbalanced")]),
        ("a [b:.5] c", [(0, "a  c"), (5, "a b c")]),
        # (here A1111 gives up on the whole prompt)
        ("a [{b|d{:.5] c", [(step, ("a {b c", "a d{:.5 c")[step % 2]) for step in range(10)]),
        ("((a][:b:c [d:3]", [(0, "((a][:b:c "), (3, "((a][:b:c d")]),
        ("[a::4]b", [(0, "ab"), (4, "b")]),
        ("[a|(b:1.1)]", [(step, ("a", "(b:1.1)")[step % 2]) for step in range(10)]),
        ("[fe|]male", [(step, ("female", "male")[step % 2]) for step in range(10)]),
        ("[a:b:0]", [(0, "b")]),
        ("[a:b:-3]", [(0, "b")]),
        ("[a:b:10]", [(0, "a")]),
        ("[a:b:1.0]", [(0, "a")]),
        ("[a:b:c:5]", [(0, "[a:b:c:5]")]),
        (r"\[a:b:5]", [(0, r"\[a:b:5]")]),
        ("a <lora:style:0.5>b", [(0, "a b")]),
    ],
)
def test_editing(prompt: str, texts: list[tuple[int, str]]) -> None:
    assert list(read_prompt(prompt, 10).texts) == texts


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("[a:b:0.5]", [(0, "b")]),
        ("[a:b:1.0]", [(0, "b")]),
        ("[a:b:1.4]", [(0, "a"), (2, "b")]),
        ("[a:b:2.0]", [(0, "a")]),
        ("[a:b:7]", [(0, "b")]),
        ("[a:b:8]", [(0, "b")]),
        ("[a:b:11]", [(0, "a"), (3, "b")]),
        ("[a:b:13]", [(0, "a")]),
        ("[a:[b:c:9]:0.5]", [(0, "b"), (1, "c")]),
        ("[a|b]", [(step, "ab"[step % 2]) for step in range(5)]),
    ],
)
def test_a_second_pass_counts_on(prompt: str, texts: list[tuple[int, str]]) -> None:
    """Five steps after eight."""
    assert list(read_prompt(prompt, 5, before=8).texts) == texts


def test_break_begins_a_chunk_also_inside_of_brackets() -> None:
    assert [(piece.text, piece.weight, piece.chunk) for piece in read_weights("a BREAK (b BREAK c:2) BREAKER")] == [
        ("a", 1.0, 0), ("b", 2.0, 1), ("c", 2.0, 2), (" BREAKER", 1.0, 2)
    ]  # fmt: skip


def test_loras() -> None:
    read = read_prompt("<lora:one>a<lora: two words :-0.5> b", 10)
    assert read.loras == (LoraTag("one", 1.0, 1.0), LoraTag("two words", -0.5, -0.5))
    assert read.texts == ((0, "a b"),)


# as A1111's Lora extension reads its parameters: the text encoders' weight before the UNet's
@pytest.mark.parametrize(
    ("tag", "text", "unet"),
    [
        ("<lora:x:0.5:0.8>", 0.5, 0.8),
        ("<lora:x:0.5:unet=0.8>", 0.5, 0.8),
        ("<lora:x:te=0.5:unet=0.8>", 0.5, 0.8),
        ("<lora:x:te=0.5>", 0.5, 0.5),
        ("<lora:x:unet=0.8>", 1.0, 0.8),
        ("<lora:x:0.3:0.8:te=0.5>", 0.5, 0.8),
        ("<lyco:x:0.5>", 0.5, 0.5),
    ],
)
def test_a_lora_s_two_weights(tag: str, text: float, unet: float) -> None:
    assert read_prompt(f"a {tag}", 10).loras == (LoraTag("x", unet, text),)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a <hypernet:style:0.7>b", "a b"),
        ("a <LORA:x:1> b <wildcard:animals> c", "a  b  c"),
        ("a <lora:x<y:1> b", "a  b"),
        ("1 < 2 <3 (<b>) <:x> <a:> <a b:c>", "1 < 2 <3 (<b>) <:x> <a:> <a b:c>"),
        (r"a \<lora:x:1>", r"a \<lora:x:1>"),
        ("<a:" * 9, "<a:" * 9),
    ],
)
def test_tags_of_any_word_are_taken_out_of_a_prompt(prompt: str, text: str) -> None:
    assert read_prompt(prompt, 10).texts == ((0, text),)


def test_of_a_negative_prompt_only_loras_are_taken_out() -> None:
    read = read_prompt("a <hypernet:x:1><lora:y:1>", 10, "negative_prompt")
    assert (read.texts, read.loras) == (((0, "a <hypernet:x:1>"),), (LoraTag("y", 1.0, 1.0),))


# A1111's strip_comments, but for line breaks, which CLIP doesn't see
@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("# a title\na cat", "a cat"),
        ("a cat # <lora:x:1>\nin a hat", "a cat \nin a hat"),
        ("a cat\n# one\n# two\nin a hat#", "a cat\nin a hat"),
        ("#", ""),
        ("a cat", "a cat"),
    ],
)
def test_comments(prompt: str, text: str) -> None:
    assert without_comments(prompt) == text


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:x:y>", "<lora: :1>", "<lora:x:1:2:3>", "<lora:x:11>", "<lora::1>", "<lora:x:1:11>", "<lora:x:dyn=4>",
        "<lyco:x:te=>",
    ],
)  # fmt: skip
def test_a_loras_tag_that_cannot_be_read(tag: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(tag)) as refused:
        read_prompt(f"a {tag}", 10, "negative_prompt")
    assert refused.value.field == "negative_prompt"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("(a:10.5)", "weight 10.5, outside 0..10"),
        ("(a:-1)", "weight -1, outside"),
        (f"(a:{'9' * 400})", "weight inf, outside"),
        (f"((a:0):{'9' * 400})", "weight nan, outside"),
        ("(" * 25 + "a" + ")" * 25, "weight 10.8"),
        ("[a:(b:11):5]", "weight 11"),
        ("(" * (MAX_DEPTH + 1), "more than 32 deep"),
        ("[(]" * (MAX_DEPTH + 1), "more than 32 deep"),
        ("[" + "|".join(map(str, range(MAX_TEXTS + 1))) + "]", "more than 16 different texts"),
        ("[a|b|c|d] [e|f|g|h|i]", "more than 16 different texts"),
    ],
)
def test_beyond_the_bounds(prompt: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(reason)) as refused:
        read_prompt(prompt, 50, "prompt_2")
    assert refused.value.field == "prompt_2"
    assert refused.value.message.startswith("prompt_2 ")


# as A1111's get_multicond_prompt_list splits them; without AND a colon is text here
@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a cat :1.2", [("a cat :1.2", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), ("a dog", 1.0)]),
        ("a cat :1.2 AND a dog:.5 AND a (bird:1.1) : -2.", [("a cat", 1.2), ("a dog", 0.5), ("a (bird:1.1)", -2.0)]),
        ("a AND\nb :3\n", [("a", 1.0), ("b", 3.0)]),
        ("a AND", [("a", 1.0), ("", 1.0)]),
        ("a :b AND c:1:2", [("a :b", 1.0), ("c:1", 2.0)]),
        ("BAND AND ANDY and b", [("BAND", 1.0), ("ANDY and b", 1.0)]),
        ("a \\AND b", [("a \\AND b", 1.0)]),
        ("a <lora:AND:1> AND b", [("a", 1.0), ("b", 1.0)]),
    ],
)
def test_prompts_that_are_composed(prompt: str, parts: list[tuple[str, float]]) -> None:
    read = read_prompt(prompt, 20)
    assert [(one.texts[0][1].strip(), one.weight) for one in read.all] == parts
    assert composed_prompts(prompt) == len(parts)
    assert read_prompt(prompt, 20, "negative_prompt").all == read_prompt(prompt, 20, "prompt_2").all or "<" in prompt
    assert len(read_prompt(prompt, 20, "negative_prompt").all) == 1


def test_compositions_beyond_the_bounds() -> None:
    for prompt, reason in (
        (" AND ".join("abcdefgh"), "prompt joins 8 prompts by AND, at most 7"),
        ("a AND b:11", "prompt gives a prompt the weight 11, outside -10..10"),
    ):
        with pytest.raises(InvalidRequest, match=re.escape(reason)):
            read_prompt(prompt, 20)


@given(UNMARKED, st.integers(1, 60))
def test_a_text_without_marks_is_itself(text: str, steps: int) -> None:
    read = read_prompt(text, steps)
    assert read.texts == ((0, text),)
    assert read.plain_texts == (text,)
    assert weighed(text) == ([(text, 1.0)] if text else [])


@given(MARKED | st.text(), st.integers(1, 60))
def test_every_string_is_a_prompt_or_refused(prompt: str, steps: int) -> None:
    try:
        read = read_prompt(prompt, steps)
    except InvalidRequest:
        return
    starts = [step for step, _ in read.texts]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < steps
    texts = [text for _, text in read.texts]
    assert all(one != following for one, following in pairwise(texts))
    assert len(set(texts)) <= MAX_TEXTS
    for text in texts:
        assert all(0 <= piece.weight <= 10 for piece in read_weights(text))
        assert len("".join(piece.text for piece in read_weights(text))) <= len(prompt)


@given(st.text())
def test_escapes_make_any_text_literal(text: str) -> None:
    escaped = "".join(rf"\{character}" for character in text)
    assert read_prompt(escaped, 20).plain_texts == (text,)


@given(st.lists(st.floats(0.5, 1.5).map(lambda weight: round(weight, 3)), max_size=5), st.integers(0, 3))
def test_weights_multiply(written: list[float], brackets: int) -> None:
    text = "a"
    for weight in written:
        text = f"({text}:{weight})"
    ((_, found),) = weighed("[" * brackets + text + "]" * brackets)
    assert found == pytest.approx(math.prod(written) / 1.1**brackets)


# (a parser that looks back would be at these for minutes)
@pytest.mark.parametrize(
    "part",
    [
        "(a)",
        "[a:b:3]",
        "[a|b]",
        ":1",
        "1",
        " ",
        "BREAK ",
        "\\",
        "<lora:",
        "(a:1.1) ",
        ")",
        "]",
        "[]",
        "[(]:|)",
        " AND ",
        ": 1 AND",
    ],
)
def test_the_time_is_linear(part: str) -> None:
    with suppress(InvalidRequest):
        read_prompt(part * (100_000 // len(part)), 20)
