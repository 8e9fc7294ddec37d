"""What a prompt means to the demo models where it has words that their world hasn't."""

import random

import pytest

from demo_models.captions import caption
from demo_models.scenes import held_out_scenes
from demo_models.unknown_words import HELD_OUT, MEANING, OTHER_SUBJECTS, SUBJECTS, held_out_prompts, reading


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("an astronaut riding a horse", f"an {MEANING}"),
        ("portrait of a woman, studio light", MEANING),
        ("a red fox", "a red circle on a white background"),
        ("a red circle, oil painting", "a red circle, oil painting"),
        ("a picture", "a picture"),
        ("", ""),
    ],
)
def test_a_prompt_means_what_comes_before_its_first_unknown_word(prompt: str, meaning: str) -> None:
    assert reading(prompt) == meaning


def test_captions_mean_themselves() -> None:
    rng = random.Random(3)
    for scene in held_out_scenes(200, seed=3):
        text = caption(scene, rng)
        assert reading(text) == text


def test_what_is_measured_is_never_trained_on() -> None:
    prompts = held_out_prompts(HELD_OUT)
    assert len(set(prompts)) == HELD_OUT
    assert not set(SUBJECTS) & set(OTHER_SUBJECTS)
    assert all(MEANING in reading(prompt) or "circle on" in reading(prompt) for prompt in prompts)
