"""What surely fits is what no tokenizer's count refuses."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptSchedule, PromptText
from deployments.engine.prompts.syntax import surely_fits
from deployments.engine.types import TextEncodingRequest

# what makes tokens, chunks and bytes: U+0958 and U+1D160 are longer in NFC, U+0130 in lower case
PIECES = (
    "a",
    "é",
    "犬",
    "🐈",
    "\u0958",
    "\U0001d160",
    "\u0130",
    " ",
    ",",
    "BREAK ",
    "zq" * 30,
    "(",
    ":1.2)",
    "[a|",
    "]",
    "\\(",
)


@pytest.fixture(scope="module")
def encoder(tiny_sd15: Path) -> PromptEncoder:
    spec = CheckpointSpec(family="sd15", source=str(tiny_sd15))
    encoders = load_text_encoders(spec, torch.device("cpu"), torch.float32)
    return PromptEncoder({"sd15": encoders}, batch=2, max_chunks=2)


@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_no_text_of_what_fits_is_refused(encoder: PromptEncoder, pieces: list[str]) -> None:
    prompt = "".join(pieces)
    if surely_fits(prompt, 2):
        request = TextEncodingRequest("sd15", prompt, None, steps=4)
        encoder.check(PromptSchedule.of(request).texts)


def test_most_prompts_surely_fit(encoder: PromptEncoder) -> None:
    assert surely_fits("a red fox, " * 40, 8)
    assert not surely_fits("a red fox, " * 41, 8)
    assert not surely_fits("BREAK" * 9, 8)
    encoder.check([PromptText("sd15", "zq " * 75)])  # it counts tokens, not bytes
    with pytest.raises(InvalidRequest, match="which take 3 chunks of 75: at most 2") as refused:
        encoder.check([PromptText("sd15", "red " * 151)])
    assert refused.value.field == "text"
    assert encoder.forwards == 0
