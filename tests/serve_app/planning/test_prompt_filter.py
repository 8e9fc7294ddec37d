import time

import pytest

from serve_app.errors import PromptRefused
from serve_app.planning.prompt_filter import PromptFilter


@pytest.mark.parametrize(
    ("pattern", "prompt"),
    [
        (r"\bforbidden\b", "a forbidden thing"),
        (r"\bforbidden\b", "FORBIDDEN"),
        (r"FORBIDDEN", "forbidden"),
        (r"forbidden", "\uff46\uff4f\uff52\uff42\uff49\uff44\uff44\uff45\uff4e"),  # full-width letters
        (r"forbidden", "for\u200bbid\u00adden"),  # invisible characters
        (r"office", "o\ufb03ce"),  # a ligature
        (r"straße", "STRASSE"),
        (r"STRASSE", "straße"),
        (r"éclair", "E\u0301CLAIR"),
        (r"(red|blue) +circle$", "a red   circle"),
        (r"[^\W\d]{30}", "x" * 30),
    ],
)
def test_a_pattern_is_found_however_it_is_written(pattern: str, prompt: str) -> None:
    with pytest.raises(PromptRefused) as caught:
        PromptFilter(["never there", pattern]).check(prompt)
    assert caught.value.field == "prompt"
    assert prompt not in str(caught.value)


@pytest.mark.parametrize("prompt", ["unforbiddenly", "a large red circle", "", "forbid den"])
def test_other_prompts_pass(prompt: str) -> None:
    PromptFilter([r"\bforbidden\b"]).check(prompt)
    PromptFilter([]).check(prompt)


@pytest.mark.parametrize("pattern", ["(", "*", r"(?=ahead)", r"(?<!behind)x", r"(a)\1", "(?:x{900}){900}", "[z-a]"])
def test_a_pattern_that_cannot_be_used_is_named_at_start(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"prompt_patterns\.1"):
        PromptFilter(["fine", pattern])


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(a|a)*b$", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_no_pattern_can_be_held_up_by_a_prompt(pattern: str) -> None:
    """Each of these takes a backtracking engine longer than the age of the universe."""
    start = time.monotonic()
    PromptFilter([pattern + "!"]).check("a" * 100_000 + "?")
    assert time.monotonic() - start < 5
