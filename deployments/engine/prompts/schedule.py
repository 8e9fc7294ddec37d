"""The texts that a generation needs encoded, and the step from which each of them counts.

A prompt, its negative prompt and SDXL's second ones may each change between steps, and a prompt may be composed of
several, or have regions with prompts of their own.
"""

from collections.abc import Mapping, Sequence
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


class _Texts(NamedTuple):
    """Those of a step: of the prompts that are composed or the prompt and its regions, and of the negative prompt."""

    step: int
    positives: tuple[PromptText, ...]
    negative: PromptText | None

    @property
    def all(self) -> tuple[PromptText, ...]:
        return self.positives if self.negative is None else (*self.positives, self.negative)


@dataclass(frozen=True, slots=True)
class PromptSchedule:
    """Texts, each with the inference step from which it counts, from 0 on.

    Attributes:
        changes: the texts that follow one another.
        weights: of the prompts that are composed, and of the regions'.
        regions: how many of a step's last positive texts are regions'.
    """

    changes: tuple[_Texts, ...]
    weights: tuple[float, ...] = (1.0,)
    regions: int = 0

    @classmethod
    def of(
        cls,
        request: TextEncodingRequest,
        loras: tuple[TextLora, ...] = (),
        region_loras: Sequence[tuple[TextLora, ...]] = (),
    ) -> "PromptSchedule":
        """Read the prompts of a request.

        Args:
            request: the request.
            loras: those of its LoRAs that change text encoders.
            region_loras: likewise of each region's; empty if all have `loras`.

        Raises:
            InvalidRequest: a prompt is beyond the syntax's limits, or composed and has regions; names its field.
        """
        first = read_prompt(request.prompt, request.steps, "prompt", before=request.before)
        regions = [
            read_prompt(text, request.steps, f"regions.{index}.prompt", before=request.before)
            for index, text in enumerate(request.regions)
        ]
        if first.composed and regions:
            raise InvalidRequest("prompt has AND, which can't be combined with regions", "prompt")
        second = _read(request.prompt_2, request, "prompt_2")
        negative = _read(request.negative_prompt, request, "negative_prompt")
        negative_second = _read(request.negative_prompt_2, request, "negative_prompt_2")
        reads = (*first.all, *regions, second, negative, negative_second)
        steps = {step for read in reads if read for step, _ in read.texts}
        changes = []
        for step in sorted(steps):
            texts = [(prompt, _text_at(second, step), loras) for prompt in first.all]
            texts += [
                (prompt, None, own) for prompt, own in zip(regions, region_loras or [loras] * len(regions), strict=True)
            ]
            positives = tuple(
                PromptText(request.checkpoint, prompt.text_at(step), request.clip_skip, of_second, own)
                for prompt, of_second, own in texts
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
            changes.append(_Texts(request.skipped + step, positives, negative_text))
        return cls(tuple(changes), tuple(prompt.weight for prompt in (*first.all, *regions)), len(regions))

    @property
    def texts(self) -> tuple[PromptText, ...]:
        """Each text once."""
        return tuple(dict.fromkeys(text for change in self.changes for text in change.all))

    def conditioning(self, embeddings: Mapping[PromptText, PromptEmbedding]) -> Conditioning:
        """The conditioning, given the embedding of each text."""
        edits = []
        for change in self.changes:
            first, *composed = (embeddings[text] for text in change.positives)
            negative = None if change.negative is None else embeddings[change.negative]
            edits.append(PromptEdit(change.step, first, negative, tuple(composed)))
        begin, *later = edits
        return Conditioning(begin.positive, begin.negative, tuple(later), composed=begin.composed, weights=self.weights)

    def in_field(self, error: InvalidRequest, text: PromptText) -> InvalidRequest:
        """An encoder's error about a text (field "text" or "second") with the name of the request's field."""
        if error.field not in ("text", "second"):
            return error
        field = self._field(text)
        if error.field == "second" and text.second is not None:
            field += "_2"
        return InvalidRequest(f"{field} {error.message}", field)

    def _field(self, text: PromptText) -> str:
        for change in self.changes:
            if text in change.positives:
                region = change.positives.index(text) - len(change.positives) + self.regions
                return "prompt" if region < 0 else f"regions.{region}.prompt"
        return "negative_prompt"


def _read(prompt: str | None, request: TextEncodingRequest, field: str) -> Prompt | None:
    return None if prompt is None else read_prompt(prompt, request.steps, field, before=request.before)


def _text_at(prompt: Prompt | None, step: int) -> str | None:
    return None if prompt is None else prompt.text_at(step)
