"""The pieces of a text as chunks of tokens, as many as a CLIP encoder reads at once, with a weight for each token.

AUTOMATIC1111's rules: a chunk that is full ends behind its last comma if that is near; BREAK ends one early; a textual
inversion is never cut. Knows no torch and no encoder's weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.length import COMMA_REACH
from deployments.engine.prompts.syntax import Piece
from deployments.engine.prompts.textual_inversion import PromptVectors


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens between the start's and the end's, and a weight for each.

    vectors: textual inversions by the position of their first token; the ids in their places mean nothing.
    """

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    vectors: list[tuple[int, PromptVectors]] = field(default_factory=list)

    def add(self, token: int, weight: float) -> None:
        """One more token."""
        self.tokens.append(token)
        self.weights.append(weight)

    def split(self, at: int) -> "Chunk":
        """Cut the tokens from `at` on off, and return them as a chunk."""
        rest = Chunk(self.tokens[at:], self.weights[at:], [(p - at, v) for p, v in self.vectors if p >= at])
        del self.tokens[at:], self.weights[at:]
        self.vectors[:] = [(position, vectors) for position, vectors in self.vectors if position < at]
        return rest


class Chunker:
    """Cuts texts for one tokenizer."""

    def __init__(
        self,
        tokenize: Callable[[str], Sequence[int]],
        length: int,
        comma: int,
        inversions: Mapping[str, PromptVectors],
        most: int,
    ) -> None:
        """
        tokenize: ids of a text, without start and end. length: tokens of a chunk. comma: a comma's id.
        inversions: by name; a text calls them by the tokens of their names, so that case makes no difference.
        most: chunks that a text may take.
        """
        self._tokenize = tokenize
        self._length = length
        self._comma = comma
        self._most = most
        self._called: dict[int, list[tuple[tuple[int, ...], PromptVectors]]] = {}
        for name, inversion in inversions.items():
            ids = tuple(tokenize(name))
            if ids:
                self._called.setdefault(ids[0], []).append((ids, inversion))
        for same_start in self._called.values():
            same_start.sort(key=lambda called: -len(called[0]))  # "cat-2" is called before "cat"

    def chunks(self, pieces: Sequence[Piece]) -> list[Chunk]:
        """At least one. Raises InvalidRequest (field: "text") for more than there may be."""
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
                called = self._called_at(tokens, position)
                if called is None:
                    chunk.add(token, piece.weight)
                    position += 1
                    continue
                name_tokens, inversion = called
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

    def _called_at(self, tokens: Sequence[int], position: int) -> tuple[int, PromptVectors] | None:
        for ids, inversion in self._called.get(tokens[position], ()):
            if tuple(tokens[position : position + len(ids)]) == ids:
                return len(ids), inversion
        return None
