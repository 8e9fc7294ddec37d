"""The syntax of prompts, AUTOMATIC1111's: a prompt -> the texts that condition its steps -> weighted pieces of each.

    (word) ((word)) [word]      more weight (x 1.1, once more for each bracket), less (/ 1.1)
    (word:1.3)                  a weight in numbers, 0 to 10
    BREAK                       what follows begins a new chunk of tokens
    [from:to:when]              `from` until step `when`, then `to`; [to:when] and [from::when] add and remove
                                a second pass counts on: steps behind those of the first, fractions above 1
    [one|other|…]               takes turns, step by step
    <lora:name:0.8>             a LoRA, wherever it stands
    \\(                          a backslash makes the next character an ordinary one

No string is a syntax error: an opening bracket that is never closed weighs all that follows, as if it were closed at
the end; a closing one that was never opened, a `:` or `|` outside of brackets, a weight that is no number are text.
InvalidRequest is for what is beyond the bounds below. Linear in the text; knows nothing of tokens or encoders.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from deployments.engine.errors import InvalidRequest

MAX_DEPTH = 32  # brackets open at a time
MAX_TEXTS = 16  # that one prompt takes in turns
MIN_WEIGHT, MAX_WEIGHT = 0.0, 10.0
MAX_LORA_WEIGHT = 10.0

_STRONGER, _WEAKER = 1.1, 1 / 1.1
# possessive, as nothing here may give back what it has: the time stays linear in the text
_NUMBER = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)"
# one after the other these are the whole text, whatever it is
_TOKEN = re.compile(rf"\\.|:\s*({_NUMBER})\s*\)|[\\()\[\]:|]|[^\\()\[\]:|]+", re.DOTALL)
_EDIT_TOKEN = re.compile(r"\\.|[\\()\[\]:|]|[^\\()\[\]:|]+", re.DOTALL)
_WHEN = re.compile(rf"\s*({_NUMBER})\s*")
_BREAK = re.compile(r"\bBREAK\b")
_LORA = re.compile(r"<lora:([^<>]*)>")
_LORA_PARTS = re.compile(rf"([^:]+)(?::\s*({_NUMBER})\s*)?")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that the prompt names, by its file's name, and its strength, -10 to 10."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text, and how much each of its tokens weighs. chunk: how many BREAKs come before it."""

    text: str
    weight: float
    chunk: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was read.

    texts: what conditions the steps, each from an inference step on (counted from 0, rising) to the next one's; the
        first from step 0. Weights are still in them. loras: as they stand in the prompt, first to last.
    """

    texts: tuple[tuple[int, str], ...]
    loras: tuple[Lora, ...]

    def text_at(self, step: int) -> str:
        """What conditions an inference step."""
        return self.texts[bisect_right(self.texts, step, key=lambda text: text[0]) - 1][1]

    @property
    def plain_texts(self) -> tuple[str, ...]:
        """Each different text once, as it is read without any mark: weights, escapes, BREAK."""
        return tuple(dict.fromkeys(_plain(text) for _, text in self.texts))


def read_prompt(prompt: str, steps: int, field: str = "prompt", *, before: int = 0) -> Prompt:
    """What a prompt says for a pass of so many inference steps.

    before: steps of the pass before it, 0 for a first one. Turns begin anew with each pass, as in A1111.
    Raises InvalidRequest, naming `field`: brackets nested too deep, too many different texts, a weight out of range,
    a LoRA's tag that can't be read.
    """
    loras = named_loras(prompt, field)
    texts = tuple(_texts(_tree(without_loras(prompt), field), _Pass(steps, before), field))
    for text in dict.fromkeys(text for _, text in texts):
        read_weights(text, field)
    return Prompt(texts, loras)


def named_loras(prompt: str, field: str = "prompt") -> tuple[Lora, ...]:
    """As they stand in the prompt. Raises InvalidRequest for a tag that can't be read."""
    return tuple(_lora(tag[1], field) for tag in _LORA.finditer(prompt))


def without_loras(prompt: str) -> str:
    """The prompt without its LoRAs' tags."""
    return _LORA.sub("", prompt)


def read_weights(text: str, field: str = "prompt") -> list[Piece]:
    """The pieces of one text of a Prompt, in order; none is empty, and neighbours differ in weight or chunk.

    Raises InvalidRequest for a weight beyond 0..10 and for brackets nested too deep.
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


def _merged(texts: Sequence[str], weights: Sequence[float], chunks: Sequence[int]) -> list[Piece]:
    """Neighbours of one weight as one piece, so that a word isn't cut where no weight changes."""
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


def _lora(tag: str, field: str) -> Lora:
    found = _LORA_PARTS.fullmatch(tag)
    weight = 1.0 if found is None or found[2] is None else float(found[2])
    if found is None or not found[1].strip() or abs(weight) > MAX_LORA_WEIGHT:
        shown = ascii(tag)[1:-1][:64]
        raise InvalidRequest(
            f"{field}: <lora:{shown}> is no <lora:name> or <lora:name:weight> with a weight in "
            f"{-MAX_LORA_WEIGHT:g}..{MAX_LORA_WEIGHT:g}",
            field,
        )
    return Lora(found[1].strip(), weight)


class _Pass(NamedTuple):
    """Its inference steps, and those of the pass before it."""

    steps: int
    before: int


@dataclass(frozen=True, slots=True)
class _Switch:
    """[before:after:when]. when: a step, or a fraction of them."""

    before: "_Nodes"
    after: "_Nodes"
    when: float
    is_fraction: bool

    def step(self, of: _Pass) -> int:
        """The first one of `after` in a pass; its number of steps where that is later."""
        begun = of.steps if self.is_fraction and of.before else of.before
        at = self.when * (of.steps if self.is_fraction else 1) - begun
        return int(max(0.0, min(at, of.steps)))


@dataclass(frozen=True, slots=True)
class _Turns:
    """[one|other|…]."""

    options: "tuple[_Nodes, ...]"


_Nodes = tuple["str | _Switch | _Turns", ...]


class _Open:
    """A bracket that is open, and what has come since. marks: the nodes that are its own `:` and `|`."""

    __slots__ = ("bracket", "marks", "nodes")

    def __init__(self, bracket: str) -> None:
        self.bracket = bracket
        self.nodes: list[str | _Switch | _Turns] = []
        self.marks: list[int] = []

    def closed(self) -> list[str | _Switch | _Turns]:
        """What a pair of square brackets means: turns, a switch, or a weight, which stays text."""
        bars = [index for index in self.marks if self.nodes[index] == "|"]
        if bars:
            return [_Turns(tuple(self._between(bars)))]
        when = self._when() if 1 <= len(self.marks) <= 2 else None
        if when is None:
            return ["[", *self.nodes, "]"]
        *parts, _ = self._between(self.marks)
        before, after = parts if len(parts) == 2 else ((), parts[0])
        # (as A1111: a whole number is a step, anything below 1 or with a point in it a fraction)
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
    """The prompt with its edits as nodes. Round brackets stay text, and so do `:` and `|` right inside of them."""
    open_brackets = [_Open("")]
    squares = 0
    for found in _EDIT_TOKEN.finditer(prompt):
        mark, inner = found[0], open_brackets[-1]
        if mark in ("(", "["):
            open_brackets.append(_Open(mark))
            squares += mark == "["
            if len(open_brackets) - 1 > MAX_DEPTH:
                raise _too_deep(field)
        elif mark == ")" and inner.bracket == "(":
            open_brackets.pop()
            open_brackets[-1].nodes += ["(", *inner.nodes, ")"]
        elif mark == "]" and squares:
            while open_brackets[-1].bracket == "(":
                _give_up(open_brackets)
            closed = open_brackets.pop().closed()
            open_brackets[-1].nodes += closed
            squares -= 1
        else:
            if mark in (":", "|") and inner.bracket == "[":
                inner.marks.append(len(inner.nodes))
            inner.nodes.append(mark)
    while len(open_brackets) > 1:
        _give_up(open_brackets)
    return tuple(open_brackets[0].nodes)


def _give_up(open_brackets: list[_Open]) -> None:
    """The innermost bracket has no partner: it is text like what came since."""
    alone = open_brackets.pop()
    open_brackets[-1].nodes += [alone.bracket, *alone.nodes]


def _texts(nodes: _Nodes, of: _Pass, field: str) -> Iterator[tuple[int, str]]:
    """The texts of the steps, where they change."""
    switches = sorted({node.step(of) for node in _walk(nodes) if isinstance(node, _Switch)})
    turns = math.lcm(*(len(node.options) for node in _walk(nodes) if isinstance(node, _Turns)))
    known: dict[tuple[int, int], str] = {}
    last: str | None = None
    # without turns there is nothing to look at between two switches
    for step in range(of.steps) if turns > 1 else sorted({0, *(at for at in switches if at < of.steps)}):
        state = bisect_right(switches, step), step % turns
        if state not in known:
            if len(known) == MAX_TEXTS:
                raise InvalidRequest(f"{field} changes between more than {MAX_TEXTS} texts over its steps", field)
            known[state] = "".join(_at(nodes, step, of))
        if known[state] != last:
            last = known[state]
            yield step, last


def _at(nodes: _Nodes, step: int, of: _Pass) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Switch):
            yield from _at(node.before if step < node.step(of) else node.after, step, of)
        else:
            yield from _at(node.options[step % len(node.options)], step, of)


def _walk(nodes: Iterable[str | _Switch | _Turns]) -> Iterator[_Switch | _Turns]:
    for node in nodes:
        if isinstance(node, _Switch):
            yield node
            yield from _walk(node.before)
            yield from _walk(node.after)
        elif isinstance(node, _Turns):
            yield node
            for option in node.options:
                yield from _walk(option)


def _too_deep(field: str) -> InvalidRequest:
    return InvalidRequest(f"{field} opens more than {MAX_DEPTH} brackets inside one another", field)
