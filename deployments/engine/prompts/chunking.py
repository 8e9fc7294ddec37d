"""Splits the pieces of a text into chunks of weighted tokens, each as long as a CLIP encoder reads at once.

AUTOMATIC1111's rules: a full chunk ends after its last comma if that is near; BREAK ends a chunk early; a textual
inversion is never cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import COMMA_REACH, Piece
from deployments.engine.prompts.textual_inversion import PromptVectors


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens without start and end.

    Args:
        tokens: their ids; those in the places of textual inversions mean nothing.
        weights: a weight for each.
        vectors: textual inversions, each with the position of its first token.
    """

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    vectors: list[tuple[int, PromptVectors]] = field(default_factory=list)

    def add(self, token: int, weight: float) -> None:
        """Append a token."""
        self.tokens.append(token)
        self.weights.append(weight)

    def split(self, at: int) -> "Chunk":
        """Remove the tokens from position `at` on and return them as a chunk."""
        rest = Chunk(self.tokens[at:], self.weights[at:], [(p - at, v) for p, v in self.vectors if p >= at])
        del self.tokens[at:], self.weights[at:]
        self.vectors[:] = [(position, vectors) for position, vectors in self.vectors if position < at]
        return rest


class Chunker:
    """Splits texts for one tokenizer.

    Args:
        tokenize: the ids of a text, without start and end.
        length: tokens of a chunk.
        comma: id of a comma.
        inversions: textual inversions by name. Texts name them by the tokens of their names, whatever the case.
        most: most chunks of a text.
    """

    def __init__(
        self,
        tokenize: Callable[[str], Sequence[int]],
        length: int,
        comma: int,
        inversions: Mapping[str, PromptVectors],
        most: int,
    ) -> None:
        self._tokenize = tokenize
        self._length = length
        self._comma = comma
        self._most = most
        self._inversions = dict(inversions)
        self._named: dict[int, list[tuple[tuple[int, ...], PromptVectors]]] = {}
        for name, inversion in inversions.items():
            ids = tuple(tokenize(name))
            if ids:
                self._named.setdefault(ids[0], []).append((ids, inversion))
        for same_start in self._named.values():
            same_start.sort(key=lambda entry: -len(entry[0]))  # "cat-2" is found before "cat"

    def also_with(self, inversions: Mapping[str, PromptVectors]) -> "Chunker":
        """A chunker that knows further textual inversions, which count before others of their names."""
        return self.with_only(self._inversions | dict(inversions))

    def with_only(self, inversions: Mapping[str, PromptVectors]) -> "Chunker":
        """A chunker that knows these textual inversions in place of its own."""
        return Chunker(self._tokenize, self._length, self._comma, inversions, self._most)

    def chunks(self, pieces: Sequence[Piece]) -> list[Chunk]:
        """Split a text; at least one chunk. Raises InvalidRequest (field "text") for more than the most."""
        done: list[Chunk] = []
        chunk, comma, breaks = Chunk(), -1, 0

        def end() -> None:
            nonlocal chunk, comma
            done.append(chunk)
            chunk, comma = Chunk(), -1

        for piece in pieces:
            for _ in range(piece.chunk - breaks):
                end()
            breaks = piece.chunk
            tokens = self._tokenize(piece.text)
            position = 0
            while position < len(tokens):
                token = tokens[position]
                full = len(chunk.tokens) == self._length
                if token == self._comma:
                    comma = len(chunk.tokens)
                elif full and comma != -1 and len(chunk.tokens) - comma <= COMMA_REACH:
                    moved = chunk.split(comma + 1)
                    end()
                    chunk = moved
                if len(chunk.tokens) == self._length:
                    end()
                named = self._named_at(tokens, position)
                if named is None:
                    chunk.add(token, piece.weight)
                    position += 1
                    continue
                name_tokens, inversion = named
                if len(chunk.tokens) + inversion.tokens > self._length:
                    end()
                chunk.vectors.append((len(chunk.tokens), inversion))
                for _ in range(inversion.tokens):
                    chunk.add(0, piece.weight)
                position += name_tokens
        if chunk.tokens or not done:
            end()
        if len(done) > self._most:
            total = sum(len(one.tokens) for one in done)
            raise InvalidRequest(
                f"has {total} tokens, which take {len(done)} chunks of {self._length}: at most {self._most}", "text"
            )
        return done

    def _named_at(self, tokens: Sequence[int], position: int) -> tuple[int, PromptVectors] | None:
        for ids, inversion in self._named.get(tokens[position], ()):
            if tuple(tokens[position : position + len(ids)]) == ids:
                return len(ids), inversion
        return None
