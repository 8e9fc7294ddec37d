"""Prompts with variants and wildcards: what they become, by the seed alone, and what is refused."""

import random
from collections import Counter
from contextlib import suppress

import pytest

from deployments.engine.errors import InvalidRequest
from serve_app.planning.dynamic_prompts import expanded

WILDCARDS = {
    "colours": ["red", "blue", "{dark|light} green"],
    "shapes": ["3::circle", "square", "__nothing"],
    "nature/trees": ["oak"],
    "nature/birds": ["owl"],
    "round": ["a __round__"],
    "many": ["__many__ __many__", "__many__ __many__ __many__"],
    "full_name": ["with underscore"],
}


def texts(text: str, seeds: int = 200) -> Counter[str]:
    return Counter(expanded("prompt", text, seed, WILDCARDS) for seed in range(seeds))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|blue} circle", {"a red circle", "a blue circle"}),
        ("{a|{b|c}d}", {"a", "bd", "cd"}),
        ("{|very }large", {"large", "very large"}),
        ("{2$$a|b|c}", {"a,b", "b,a", "a,c", "c,a", "b,c", "c,b"}),
        ("{1-2$$ and $$a|b}", {"a", "b", "a and b", "b and a"}),
        ("{2-$$ $$a|b}", {"a b", "b a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{9$$a|b}", {"a,b", "b,a"}),
        ("{1$$$$a|b}", {"a", "b"}),
        ("{0::a|2::b}", {"b"}),
        ("{5::a}", {"a"}),
        ("__colours__", {"red", "blue", "dark green", "light green"}),
        ("{2$$/$$__nature/*__}", {"oak/owl", "owl/oak"}),
        ("__nature/b*__ __full_name__", {"owl with underscore"}),
        # what is A1111's own stays
        ("[a|b] (c:1.2) [d:e:0.5] <lora:x:1> \\(f\\) a_b $5 x::y # z", None),
        (r"\{a\|b\} \__colours\__ \| \\", None),
        ("", {""}),
    ],
)
def test_what_a_text_becomes(text: str, expected: set[str] | None) -> None:
    if expected is None:
        expected = {text.replace(r"\{", "{").replace(r"\}", "}").replace(r"\|", "|").replace(r"\_", "_")}
    assert texts(text).keys() == expected


def test_weights_are_shares() -> None:
    for text in ("{3::circle|square}", "{ 0.75::circle| 0.25::square}"):
        assert texts(text, 2_000)["circle"] == pytest.approx(1_500, abs=100)
    lines = texts("__shapes__", 2_000)
    assert lines["circle"] == pytest.approx(1_200, abs=100)
    assert lines["__nothing"] == pytest.approx(400, abs=80)


def test_the_seed_alone_chooses() -> None:
    text = "{a|b|c} __colours__ {2$$d|e|f}"
    state = random.getstate()
    first = [expanded("prompt", text, seed, WILDCARDS) for seed in (3, 2**63 - 1)]
    assert random.getstate() == state
    assert [expanded("negative_prompt", text, seed, WILDCARDS) for seed in (3, 2**63 - 1)] == first
    # written down, so that a later version draws the same
    assert first[0] == "b blue e,d"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a {b|c", r"has a { at character 3 without its }; \{ is a plain one"),
        ("a {b|{c}", "has a { at character 3 without its }"),
        ("a b}", r"has a } at character 4 without a { before it; \} is a plain one"),
        ("{3-2$$a|b|c}", "asks for 3 to 2 variants at character 1"),
        ("{0::a|0::b}", "has variants of which each has the weight 0"),
        ("__none__", "names the wildcard 'none', of which there is no file with a line in it"),
        ("__../secrets__", "names the wildcard '../secrets'"),
        ("__x*__", "names the wildcard 'x*'"),
        ("__round__", "has variants or wildcards within each other, more than 16 deep"),
        ("{" * 17 + "}" * 17, "has braces within each other, more than 16 deep"),
        ("{a}" * 1_001, "needs more than 1000 choices"),
    ],
)
def test_what_cant_be_chosen(text: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        expanded("hires.prompt", text, 1, WILDCARDS)
    assert refused.value.message.startswith("hires.prompt ")
    assert why in refused.value.message
    assert refused.value.field == "hires.prompt"


HOSTILE = [
    "{" * 1_000,
    "_" * 50_000,
    "__a" * 20_000,
    "{a|" * 1_000,
    "\\" * 50_000,
    "{1$$" * 1_000,
    "{" * 16 + "a|" * 9_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_read_to_its_end(text: str) -> None:
    with suppress(InvalidRequest):
        expanded("prompt", text, 1, {})
