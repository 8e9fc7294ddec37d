r"""Prompts with variants, as users of AUTOMATIC1111's extension sd-dynamic-prompts write them; a seed chooses. Pure.

    {red|blue}              one of them
    {2::red|blue}           the first twice as often
    {2$$red|blue|green}     two of them, with a comma between; {1-3$$...}, {2-$$...}, {-2$$...}: how many is chosen, too
    {2$$ and $$red|blue}    with another text between
    __colours__             a line of the wildcards' file colours.txt; of all that match for __nature/*__
    \{ \} \| \_             the characters themselves

Variants and lines may have variants. Of the same seed equal texts become equal ones.
"""

import fnmatch
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import LimitsSettings
from serve_app.planning.prompts import check_text
from serve_app.schemas.generation_request import GenerationRequest

Wildcards = Mapping[str, Sequence[str]]
"""The lines of each file, by its name."""

_DEEPEST = 16  # variants within variants, and lines within lines
_MOST_CHOICES = 1_000  # of a text
_TOKEN = re.compile(r"\\[{}|_]|__(?P<wildcard>[\w\-./*]+?)__|[{}|]|[^\\{}|_]+|.", re.DOTALL)
_WEIGHT = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)::", re.ASCII)
_COUNT = re.compile(r"\s*(?:([0-9]{1,4})|([0-9]{1,4})?-([0-9]{1,4})?)\$\$(?:([^|{}$]*)\$\$)?", re.ASCII)


class _Wrong(Exception):
    """What is wrong with a text, to be said after the name of its field."""


@dataclass(frozen=True, slots=True)
class _Wildcard:
    """A line of the files that a name matches."""

    name: str


@dataclass(frozen=True, slots=True)
class _Choice:
    """Some of several variants, which are lists of parts, each with its weight; `most` is None for all of them."""

    variants: tuple[tuple[float, "_Parts"], ...]
    least: int
    most: int | None
    between: str


_Parts = tuple[str | _Wildcard | _Choice, ...]


def with_chosen_texts(
    request: GenerationRequest, drawn_seed: int, wildcards: Wildcards, limits: LimitsSettings
) -> GenerationRequest:
    """A request with the variants and wildcards of its prompts chosen, where it says that they have some.

    Args:
        request: of a client.
        drawn_seed: chooses if the request has no seed.
        wildcards: that prompts may name.
        limits: of texts.

    Raises:
        InvalidRequest: a prompt can't be read, or names a wildcard that isn't there.
    """
    if not request.dynamic_prompts:
        return request
    seed = drawn_seed if request.seed is None else request.seed

    def chosen(field: str, text: str) -> str:
        check_text(field, text, limits)
        return expanded(field, text, seed, wildcards)

    return request.with_texts(chosen)


def expanded(field: str, text: str, seed: int, wildcards: Wildcards) -> str:
    """A text with its variants and wildcards chosen.

    Args:
        field: of the text, for errors.
        text: with or without variants.
        seed: chooses.
        wildcards: that it may name.

    Raises:
        InvalidRequest: it can't be read, or names a wildcard that isn't there.
    """
    try:
        return _Chooser(seed, wildcards).text(_parts(text), 0)
    except _Wrong as error:
        raise InvalidRequest(f"{field} {error}", field) from None


class _Chooser:
    """Chooses by a seed. Only random() is drawn from, whose numbers are the same in every version of Python."""

    def __init__(self, seed: int, wildcards: Wildcards) -> None:
        self._random = random.Random(seed).random  # no secret
        self._wildcards = wildcards
        self._choices = 0

    def text(self, parts: _Parts, depth: int) -> str:
        """The text of parts within `depth` others. Raises _Wrong."""
        if depth > _DEEPEST:
            raise _Wrong(f"has variants or wildcards within each other, more than {_DEEPEST} deep")
        return "".join(part if isinstance(part, str) else self._chosen(part, depth + 1) for part in parts)

    def _chosen(self, part: _Wildcard | _Choice, depth: int) -> str:
        self._choices += 1
        if self._choices > _MOST_CHOICES:
            raise _Wrong(f"needs more than {_MOST_CHOICES} choices")
        if isinstance(part, _Wildcard):
            return self.text(self._some(self._variants(part), 1)[0], depth)
        variants = part.variants
        alone = variants[0][1] if len(variants) == 1 else ()
        if len(alone) == 1 and isinstance(alone[0], _Wildcard):  # several of its lines
            variants = self._variants(alone[0])
        most = len(variants) if part.most is None else min(part.most, len(variants))
        least = min(part.least, most)
        some = self._some(variants, least + math.floor(self._random() * (most - least + 1)))
        return part.between.join(self.text(parts, depth) for parts in some)

    def _variants(self, wildcard: _Wildcard) -> tuple[tuple[float, _Parts], ...]:
        name, known = wildcard.name, self._wildcards
        lines = known.get(name, ())
        if "*" in name:
            lines = [line for one in sorted(known) if fnmatch.fnmatchcase(one, name) for line in known[one]]
        if not lines:
            raise _Wrong(f"names the wildcard {name[:64]!a}, of which there is no file with a line in it")
        return tuple(_line(line) for line in lines)

    def _some(self, variants: Sequence[tuple[float, _Parts]], count: int) -> list[_Parts]:
        """`count` different variants in the order in which they are drawn, fewer if the others have no weight."""
        left, some = [variant for variant in variants if variant[0] > 0], list[_Parts]()
        if not left:
            raise _Wrong("has variants of which each has the weight 0")
        while left and len(some) < count:
            at = self._random() * math.fsum(weight for weight, _ in left)
            index = 0
            while index < len(left) - 1 and at >= left[index][0]:
                at -= left[index][0]
                index += 1
            some.append(left.pop(index)[1])
        return some


@lru_cache(maxsize=1024)  # lines of files, and one text of all cells of a batch
def _line(line: str) -> tuple[float, _Parts]:
    weight = _WEIGHT.match(line)
    return (1.0, _parts(line)) if weight is None else (float(weight[1]), _parts(line[weight.end() :]))


@lru_cache(maxsize=256)
def _parts(text: str) -> _Parts:
    """What a text consists of. Raises _Wrong."""
    reader = _Reader(text)
    parts = reader.parts(0)
    if reader.at < len(text):
        raise _Wrong(f"has a }} at character {reader.at + 1} without a {{ before it; \\}} is a plain one")
    return parts


class _Reader:
    """Reads a text from `at` on, each character once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def parts(self, depth: int) -> _Parts:
        """Up to the end of the text or the variant, which stays unread."""
        parts: list[str | _Wildcard | _Choice] = []
        while (token := _TOKEN.match(self._text, self.at)) is not None:
            read = token[0]
            if read == "}" or (depth and read == "|"):
                break
            self.at = token.end()
            if read == "{":
                parts.append(self._choice(depth + 1))
            elif token["wildcard"] is not None:
                parts.append(_Wildcard(token["wildcard"]))
            else:
                parts.append(read[1:] if len(read) == 2 and read[0] == "\\" else read)
        return tuple(parts)

    def _count(self) -> tuple[int, int | None, str]:
        """How many variants are chosen, and what comes between them."""
        count = _COUNT.match(self._text, self.at)
        if count is None or not any(count.group(1, 2, 3)):
            return 1, 1, ","
        exactly, lower, upper, between = count.groups()
        least, most = int(exactly or lower or 1), int(exactly or upper or 0) or None
        if most is not None and most < least:
            raise _Wrong(f"asks for {least} to {most} variants at character {self.at}")
        self.at = count.end()
        return least, most, "," if between is None else between

    def _choice(self, depth: int) -> _Choice:
        """What is in braces, of which the first is read."""
        begun = self.at
        if depth > _DEEPEST:
            raise _Wrong(f"has braces within each other, more than {_DEEPEST} deep")
        least, most, between = self._count()
        variants = []
        while True:
            weight = _WEIGHT.match(self._text, self.at)
            if weight is not None:
                self.at = weight.end()
            variants.append((1.0 if weight is None else float(weight[1]), self.parts(depth)))
            end = self._text[self.at : self.at + 1]
            self.at += 1
            if end == "}":
                return _Choice(tuple(variants), least, most, between)
            if not end:
                raise _Wrong(f"has a {{ at character {begun} without its }}; \\{{ is a plain one")
