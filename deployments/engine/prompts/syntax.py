r"""AUTOMATIC1111's prompt syntax: a prompt becomes the texts that condition its steps, and each text weighted pieces.

    (word) ((word)) [word]      more weight (x 1.1, once more for each bracket), less (/ 1.1)
    (word:1.3)                  a weight in numbers, 0 to 10
    BREAK                       what follows begins a new chunk of tokens
    one AND other :0.5          prompts that are composed, each with a weight that may be negative (see below)
    [from:to:when]              `from` until step `when`, then `to`; [to:when] and [from::when] add and remove
                                a second pass continues the count: steps after those of the first, fractions above 1
    [one|other|…]               alternates, step by step
    <lora:name:0.8>             a LoRA, wherever it stands; <lora:name:0.8:0.5> has a weight in the text encoders and
                                one in the UNet, also written te= and unet=; lyco is another word for lora
    <word:anything>             nothing: a prompt's tags of any word are taken out; of a negative prompt's only LoRAs'
    \(                          a backslash makes the next character an ordinary one

AND composes the predictions for several prompts (arXiv:2206.01714, 11): guidance goes along the sum of each one's
difference from the negative prompt's, times its weight. It has this meaning in the prompt alone.

No string is a syntax error: an opening bracket that is never closed is closed at the end; a closing one that was never
opened, a `:` or `|` outside of brackets, and a weight that isn't a number are text. InvalidRequest is raised only
beyond the limits below. Reading takes time linear in the text.
"""

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from deployments.engine.errors import InvalidRequest

MAX_DEPTH = 32  # brackets open at a time
MAX_TEXTS = 16  # different texts of one prompt
MAX_COMPOSED = 7  # prompts that AND composes: with the negative prompt's eight rows
CHUNK_TOKENS = 75  # tokens of a chunk between its start and its end
COMMA_REACH = 20  # most tokens that move to the next chunk to stay with what follows the last comma
MIN_WEIGHT, MAX_WEIGHT = 0.0, 10.0
MAX_LORA_WEIGHT = 10.0

_STRONGER, _WEAKER = 1.1, 1 / 1.1
# possessive quantifiers: without backtracking the time stays linear in the text
_NUMBER = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)"
# successive matches cover the whole text, whatever it is
_TOKEN = re.compile(rf"\\.|:\s*({_NUMBER})\s*\)|[\\()\[\]:|]|[^\\()\[\]:|]+", re.DOTALL)
_EDIT_TOKEN = re.compile(r"\\.|[\\()\[\]:|]|[^\\()\[\]:|]+", re.DOTALL)
_WHEN = re.compile(rf"\s*({_NUMBER})\s*")
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"(?<!\\)\bAND\b")
# tried only where a ">" follows, so that each try takes its own part of the text
_TAG = re.compile(r"(?<!\\)<(\w++):([^>]++)>")
_LORA_WORDS = ("lora", "lyco")
_FLOAT = re.compile(rf"\s*{_NUMBER}\s*")
_COMMENT = re.compile(r"^#[^\n]*+\n?|#[^\n]*+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA: its file's name and its weight, -10 to 10."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class LoraTag(Lora):
    """A LoRA named in a prompt: its weight in the UNet, and the one in the text encoders."""

    text_weight: float


@dataclass(frozen=True, slots=True)
class Tag:
    """`<word:content>` in a prompt."""

    word: str
    content: str

    @property
    def names_lora(self) -> bool:
        """Whether it is a LoRA's."""
        return self.word in _LORA_WORDS

    def __str__(self) -> str:
        return f"<{self.word}:{self.content}>"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text, the weight of its tokens, and the number of BREAKs before it."""

    text: str
    weight: float
    chunk: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was read.

    Args:
        texts: pairs of an inference step, counted from 0, and the text that conditions from that step on. The first
            step is 0. Texts still contain their weights.
        loras: the LoRAs that the prompt names, in order.
        weight: in the composition.
        composed: the prompts after the first that AND composes.
    """

    texts: tuple[tuple[int, str], ...]
    loras: tuple[LoraTag, ...]
    weight: float = 1.0
    composed: "tuple[Prompt, ...]" = ()

    @property
    def all(self) -> "tuple[Prompt, ...]":
        """The prompts that are composed; the prompt itself if that is one alone."""
        return self, *self.composed

    def text_at(self, step: int) -> str:
        """The text that conditions an inference step."""
        return self.texts[bisect_right(self.texts, step, key=lambda text: text[0]) - 1][1]

    @property
    def plain_texts(self) -> tuple[str, ...]:
        """Each different text once, without weights, escapes and BREAK."""
        return tuple(dict.fromkeys(_plain(text) for prompt in self.all for _, text in prompt.texts))


def read_prompt(prompt: str, steps: int, field: str = "prompt", *, before: int = 0) -> Prompt:
    """Read a prompt for one pass of denoising.

    Args:
        prompt: the prompt.
        steps: inference steps of the pass.
        field: name of the request's field, for errors.
        before: steps of the pass before it; 0 for the first pass. Alternation starts again with each pass, as in A1111.

    Raises:
        InvalidRequest: brackets nested too deep, too many different texts, a weight out of range, an invalid LoRA tag,
            too many prompts joined by AND.
    """
    loras = named_loras(prompt, field)
    plain = without_loras(prompt) if field.startswith("negative") else without_tags(prompt)
    parts = _AND.split(plain) if field == "prompt" else [plain]
    if len(parts) > MAX_COMPOSED:
        raise InvalidRequest(f"{field} joins {len(parts)} prompts by AND, at most {MAX_COMPOSED}", field)
    weighed = [(plain, 1.0)] if len(parts) == 1 else [_weighed(part, field) for part in parts]
    prompts = []
    for part, weight in weighed:
        texts = tuple(_texts(_tree(part, field), _Steps(steps, before), field))
        for text in dict.fromkeys(text for _, text in texts):
            read_weights(text, field)
        prompts.append(Prompt(texts, loras, weight))
    return replace(prompts[0], composed=tuple(prompts[1:]))


def composed_prompts(prompt: str) -> int:
    """How many prompts AND composes to this one."""
    return len(_AND.findall(without_tags(prompt))) + 1


def tags_of(prompt: str) -> tuple[Tag, ...]:
    """The tags in a prompt, in order."""
    return tuple(Tag(found[1], found[2]) for found in _TAG.finditer(prompt, 0, prompt.rfind(">") + 1))


def without_tags(prompt: str, out: Callable[[Tag], bool] = lambda _: True) -> str:
    """The prompt without its tags; only those are left out for which `out` is true."""
    end = prompt.rfind(">") + 1
    kept = _TAG.sub(lambda found: "" if out(Tag(found[1], found[2])) else found[0], prompt[:end])
    return kept + prompt[end:]


def named_loras(prompt: str, field: str = "prompt") -> tuple[LoraTag, ...]:
    """The LoRAs that a prompt names, in order. Raises InvalidRequest for an invalid tag."""
    return tuple(_lora(tag, field) for tag in tags_of(prompt) if tag.names_lora)


def without_loras(prompt: str) -> str:
    """The prompt without its LoRAs' tags."""
    return without_tags(prompt, lambda tag: tag.names_lora)


def without_comments(prompt: str) -> str:
    """The prompt without comments, each from a "#" to the end of its line, as A1111 1.8 and later read it."""
    return _COMMENT.sub("", prompt)


def surely_fits(prompt: str, max_chunks: int) -> bool:
    """Whether no text of the prompt can take more than `max_chunks` chunks, unless it names textual inversions.

    Judged without a tokenizer, so that the text encoder is asked about long prompts only: each of CLIP's tokens has at
    least one byte of the text in lower case and NFC.
    """
    tokens = len(unicodedata.normalize("NFC", prompt).lower().encode(errors="replace"))
    least = CHUNK_TOKENS - COMMA_REACH + 1  # tokens that a full chunk keeps
    return -(-tokens // least) + prompt.count("BREAK") <= max_chunks


def read_weights(text: str, field: str = "prompt") -> list[Piece]:
    """The pieces of one text of a Prompt, in order. None is empty, and neighbours differ in weight or chunk.

    Raises InvalidRequest for a weight outside 0..10 and for brackets nested too deep.
    """
    texts: list[str] = []
    weights: list[float] = []
    chunks: list[int] = []
    round_open: list[int] = []
    square_open: list[int] = []

    def put(piece: str) -> None:
        texts.append(piece)
        weights.append(1.0)
        chunks.append(chunk)

    def weigh(start: int, factor: float) -> None:
        for index in range(start, len(weights)):
            weights[index] *= factor

    chunk = 0
    for found in _TOKEN.finditer(text):
        mark = found[0]
        if mark[0] == "\\":
            put(mark[1:])
        elif mark == "(":
            round_open.append(len(texts))
        elif mark == "[":
            square_open.append(len(texts))
        elif found[1] is not None and round_open:
            weigh(round_open.pop(), float(found[1]))
        elif mark == ")" and round_open:
            weigh(round_open.pop(), _STRONGER)
        elif mark == "]" and square_open:
            weigh(square_open.pop(), _WEAKER)
        else:
            parts = _BREAK.split(mark)
            for index, part in enumerate(parts):
                chunk += index > 0
                part = part.lstrip() if index > 0 else part
                put(part.rstrip() if index + 1 < len(parts) else part)
        if len(round_open) + len(square_open) > MAX_DEPTH:
            raise _too_deep(field)
    for start in round_open:
        weigh(start, _STRONGER)
    for start in square_open:
        weigh(start, _WEAKER)
    pieces = _merged(texts, weights, chunks)
    for piece in pieces:
        if not MIN_WEIGHT <= piece.weight <= MAX_WEIGHT:
            raise InvalidRequest(
                f"{field} gives a part of its text the weight {piece.weight:g}, outside {MIN_WEIGHT:g}..{MAX_WEIGHT:g}",
                field,
            )
    return pieces


def _weighed(part: str, field: str) -> tuple[str, float]:
    """One of the prompts that AND joins, and the weight after its last colon. Raises InvalidRequest."""
    text, colon, number = part.rpartition(":")
    if not colon or _FLOAT.fullmatch(number) is None:
        return part, 1.0
    weight = float(number)
    if abs(weight) > MAX_WEIGHT:
        raise InvalidRequest(
            f"{field} gives a prompt the weight {weight:g}, outside {-MAX_WEIGHT:g}..{MAX_WEIGHT:g}", field
        )
    return text.rstrip(), weight


def _merged(texts: Sequence[str], weights: Sequence[float], chunks: Sequence[int]) -> list[Piece]:
    """Join neighbours of one weight and chunk, so that no word is cut where the weight doesn't change."""
    parts = [part for part in zip(texts, weights, chunks, strict=True) if part[0]]
    return [
        Piece("".join(text for text, _, _ in run), weight, chunk)
        for (weight, chunk), run in groupby(parts, key=lambda part: part[1:])
    ]


def _plain(text: str) -> str:
    chunks: dict[int, list[str]] = {}
    for piece in read_weights(text):
        chunks.setdefault(piece.chunk, []).append(piece.text)
    return " ".join("".join(parts) for parts in chunks.values())


def _lora(tag: Tag, field: str) -> LoraTag:
    """A LoRA of a tag, whose numbers are read as by A1111's Lora extension."""
    name, *parts = tag.content.split(":")
    numbers = [part for part in parts if "=" not in part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    text = named.get("te", numbers[0] if numbers else "1")
    unet = named.get("unet", numbers[1] if len(numbers) > 1 else text)
    readable = (
        len(numbers) <= 2 and named.keys() <= {"te", "unet"} and _FLOAT.fullmatch(text) and _FLOAT.fullmatch(unet)
    )
    if not name.strip() or not readable or max(abs(float(text)), abs(float(unet))) > MAX_LORA_WEIGHT:
        shown = ascii(str(tag))[1:-1][:64]
        raise InvalidRequest(
            f"{field}: {shown} isn't <{tag.word}:name>, <{tag.word}:name:weight> or <{tag.word}:name:text:unet> with "
            f"weights in {-MAX_LORA_WEIGHT:g}..{MAX_LORA_WEIGHT:g}",
            field,
        )
    return LoraTag(name.strip(), float(unet), float(text))


class _Steps(NamedTuple):
    """Inference steps of a pass, and of the pass before it (0 for the first)."""

    steps: int
    before: int


@dataclass(frozen=True, slots=True)
class _Switch:
    """[before:after:when], where `when` is a step or a fraction of the steps."""

    before: "_Nodes"
    after: "_Nodes"
    when: float
    is_fraction: bool

    def step(self, timing: _Steps) -> int:
        """The step of a pass that begins with `after`, at most the number of its steps."""
        begun = timing.steps if self.is_fraction and timing.before else timing.before
        at = self.when * (timing.steps if self.is_fraction else 1) - begun
        return int(max(0.0, min(at, timing.steps)))


@dataclass(frozen=True, slots=True)
class _Alternation:
    """[one|other|…]."""

    options: "tuple[_Nodes, ...]"


_Nodes = tuple["str | _Switch | _Alternation", ...]


class _OpenBracket:
    """An open bracket, the nodes since, and the indices of those that are its own `:` and `|`."""

    __slots__ = ("bracket", "marks", "nodes")

    def __init__(self, bracket: str) -> None:
        self.bracket = bracket
        self.nodes: list[str | _Switch | _Alternation] = []
        self.marks: list[int] = []

    def closed(self) -> list[str | _Switch | _Alternation]:
        """The meaning of a pair of square brackets: an alternation, a switch, or a weight, which stays text."""
        bars = [index for index in self.marks if self.nodes[index] == "|"]
        if bars:
            return [_Alternation(tuple(self._between(bars)))]
        when = self._when() if 1 <= len(self.marks) <= 2 else None
        if when is None:
            return ["[", *self.nodes, "]"]
        *parts, _ = self._between(self.marks)
        before, after = parts if len(parts) == 2 else ((), parts[0])
        # as in A1111: a whole number is a step; a number below 1 or with a decimal point is a fraction
        number = float(when)
        return [_Switch(before, after, number, is_fraction="." in when or number < 1)]

    def _when(self) -> str | None:
        last = self.nodes[self.marks[-1] + 1 :]
        found = _WHEN.fullmatch("".join(node for node in last if isinstance(node, str)))
        return found[1] if found is not None and all(isinstance(node, str) for node in last) else None

    def _between(self, marks: Sequence[int]) -> Iterator[_Nodes]:
        for start, end in zip([-1, *marks], [*marks, len(self.nodes)], strict=True):
            yield tuple(self.nodes[start + 1 : end])


def _tree(prompt: str, field: str) -> _Nodes:
    """The prompt with its edits as nodes. Round brackets stay text, and so do `:` and `|` directly inside them."""
    open_brackets = [_OpenBracket("")]
    squares = 0
    for found in _EDIT_TOKEN.finditer(prompt):
        mark, inner = found[0], open_brackets[-1]
        if mark in ("(", "["):
            open_brackets.append(_OpenBracket(mark))
            squares += mark == "["
            if len(open_brackets) - 1 > MAX_DEPTH:
                raise _too_deep(field)
        elif mark == ")" and inner.bracket == "(":
            open_brackets.pop()
            open_brackets[-1].nodes += ["(", *inner.nodes, ")"]
        elif mark == "]" and squares:
            while open_brackets[-1].bracket == "(":
                _end_unmatched(open_brackets)
            closed = open_brackets.pop().closed()
            open_brackets[-1].nodes += closed
            squares -= 1
        else:
            if mark in (":", "|") and inner.bracket == "[":
                inner.marks.append(len(inner.nodes))
            inner.nodes.append(mark)
    while len(open_brackets) > 1:
        _end_unmatched(open_brackets)
    return tuple(open_brackets[0].nodes)


def _end_unmatched(open_brackets: list[_OpenBracket]) -> None:
    """Turn the innermost bracket, which is never closed, into text."""
    alone = open_brackets.pop()
    open_brackets[-1].nodes += [alone.bracket, *alone.nodes]


def _texts(nodes: _Nodes, timing: _Steps, field: str) -> Iterator[tuple[int, str]]:
    """The texts and the steps at which they begin."""
    switches = sorted({node.step(timing) for node in _walk(nodes) if isinstance(node, _Switch)})
    period = math.lcm(*(len(node.options) for node in _walk(nodes) if isinstance(node, _Alternation)))
    known: dict[tuple[int, int], str] = {}
    last: str | None = None
    for step in range(timing.steps) if period > 1 else sorted({0, *(at for at in switches if at < timing.steps)}):
        state = bisect_right(switches, step), step % period
        if state not in known:
            if len(known) == MAX_TEXTS:
                raise InvalidRequest(
                    f"{field} changes between more than {MAX_TEXTS} different texts over its steps", field
                )
            known[state] = "".join(_at(nodes, step, timing))
        if known[state] != last:
            last = known[state]
            yield step, last


def _at(nodes: _Nodes, step: int, timing: _Steps) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Switch):
            yield from _at(node.before if step < node.step(timing) else node.after, step, timing)
        else:
            yield from _at(node.options[step % len(node.options)], step, timing)


def _walk(nodes: Iterable[str | _Switch | _Alternation]) -> Iterator[_Switch | _Alternation]:
    for node in nodes:
        if isinstance(node, _Switch):
            yield node
            yield from _walk(node.before)
            yield from _walk(node.after)
        elif isinstance(node, _Alternation):
            yield node
            for option in node.options:
                yield from _walk(option)


def _too_deep(field: str) -> InvalidRequest:
    return InvalidRequest(f"{field} nests brackets more than {MAX_DEPTH} deep", field)
