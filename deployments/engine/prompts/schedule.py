"""The texts that a generation needs encoded, and the step from which each of them counts.

A prompt, its negative prompt and SDXL's second ones may each change between steps; together they are a list of pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import Prompt, read_prompt
from deployments.engine.types import Conditioning, PromptEdit, PromptEmbedding, TextEncodingRequest


class TextLora(NamedTuple):
    """A LoRA that changes text encoders, with the hash of its file, which may change under its name."""

    name: str
    weight: float
    hash: str


class PromptText(NamedTuple):
    """What one embedding depends on.

    Args:
        checkpoint: name of the model.
        text: the text with its weights.
        clip_skip: as in TextEncodingRequest.
        second: text of SDXL's second encoder; None for the same text.
        loras: LoRAs applied to the encoders.
    """

    checkpoint: str
    text: str
    clip_skip: int = 0
    second: str | None = None
    loras: tuple[TextLora, ...] = ()


class _Pair(NamedTuple):
    step: int
    positive: PromptText
    negative: PromptText | None


@dataclass(frozen=True, slots=True)
class PromptSchedule:
    """Pairs of texts, each with the inference step from which it counts, from 0 on."""

    pairs: tuple[_Pair, ...]

    @classmethod
    def of(cls, request: TextEncodingRequest, loras: tuple[TextLora, ...] = ()) -> "PromptSchedule":
        """Read the prompts of a request.

        Args:
            request: the request.
            loras: those of its LoRAs that change text encoders.

        Raises:
            InvalidRequest: a prompt is beyond the syntax's limits; names its field.
        """
        first = read_prompt(request.prompt, request.steps, "prompt", before=request.before)
        second = _read(request.prompt_2, request, "prompt_2")
        negative = _read(request.negative_prompt, request, "negative_prompt")
        negative_second = _read(request.negative_prompt_2, request, "negative_prompt_2")
        steps = {step for read in (first, second, negative, negative_second) if read for step, _ in read.texts}
        pairs = []
        for step in sorted(steps):
            positive_text = PromptText(
                request.checkpoint, first.text_at(step), request.clip_skip, _text_at(second, step), loras
            )
            negative_text = None
            if negative is not None:
                negative_text = PromptText(
                    request.checkpoint,
                    negative.text_at(step),
                    request.clip_skip,
                    _text_at(negative_second, step),
                    loras,
                )
            pairs.append(_Pair(request.skipped + step, positive_text, negative_text))
        return cls(tuple(pairs))

    @property
    def texts(self) -> tuple[PromptText, ...]:
        """Each text once."""
        texts = [text for pair in self.pairs for text in (pair.positive, pair.negative) if text is not None]
        return tuple(dict.fromkeys(texts))

    def conditioning(self, embeddings: Mapping[PromptText, PromptEmbedding]) -> Conditioning:
        """The conditioning, given the embedding of each text."""
        edits = tuple(
            PromptEdit(
                pair.step, embeddings[pair.positive], None if pair.negative is None else embeddings[pair.negative]
            )
            for pair in self.pairs
        )
        return Conditioning(edits[0].positive, edits[0].negative, edits[1:])

    def in_field(self, error: InvalidRequest, text: PromptText) -> InvalidRequest:
        """An encoder's error about a text (field "text" or "second") with the name of the request's field."""
        if error.field not in ("text", "second"):
            return error
        field = "prompt" if any(pair.positive == text for pair in self.pairs) else "negative_prompt"
        if error.field == "second" and text.second is not None:
            field += "_2"
        return InvalidRequest(f"{field} {error.message}", field)


def _read(prompt: str | None, request: TextEncodingRequest, field: str) -> Prompt | None:
    return None if prompt is None else read_prompt(prompt, request.steps, field, before=request.before)


def _text_at(prompt: Prompt | None, step: int) -> str | None:
    return None if prompt is None else prompt.text_at(step)
