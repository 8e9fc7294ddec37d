"""The tokenizers that come with the project are CLIP's own."""

import pytest

from deployments.engine.checkpoints.clip_tokenizer import load_tokenizer
from deployments.engine.families.family import PUBLISHED


@pytest.mark.parametrize(
    ("folder", "pad"),
    [("sd15/tokenizer", 49407), ("sd2/tokenizer", 0), ("sdxl/tokenizer_2", 0), ("sdxl-refiner/tokenizer_2", 0)],
)
def test_the_tokenizers_that_come_with_the_project(folder: str, pad: int) -> None:
    tokenizer = load_tokenizer(PUBLISHED / folder)
    assert len(tokenizer) == 49_408
    assert tokenizer.pad_token_id == pad
    # as OpenAI's own code has it
    assert tokenizer("Don't: 1girl,  naïve ✨", add_special_tokens=False).input_ids == [
        847, 713, 281, 272, 1611, 267, 1097, 35689, 563, 3531,
    ]  # fmt: skip
