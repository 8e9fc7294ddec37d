"""Encodes texts with checkpoints' CLIP encoders: in chunks of tokens, with weights, in batches.

For a text of up to 75 tokens without weights the result is that of diffusers' `encode_prompt`. Longer texts take
several chunks, and weights count, as in AUTOMATIC1111. Every batch has the same number of rows, so that an embedding
doesn't depend on what else is encoded; checkpoints with equal encoders share encodings. Runs in the device's thread.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from deployments.engine.adapters.lora import AdaptedModel, AdaptedRows, Adapter
from deployments.engine.adapters.lora_file import LoraFile, LoraFiles
from deployments.engine.checkpoints.loader import TextEncoder, TextEncoders
from deployments.engine.config import LoraSettings
from deployments.engine.errors import InvalidRequest, LoraRefused, UnknownCheckpoint
from deployments.engine.prompts.chunking import Chunk, Chunker
from deployments.engine.prompts.schedule import PromptText, TextLora
from deployments.engine.prompts.syntax import read_weights
from deployments.engine.prompts.textual_inversion import PromptVectors
from deployments.engine.row_threads import computing
from deployments.engine.types import Array, PromptEmbedding


class _Key(NamedTuple):
    """What an embedding depends on: the encoders' hash, the texts of the first and the other encoder, and the rest."""

    encoders: str
    text: str
    second: str
    clip_skip: int
    loras: tuple[TextLora, ...]

    def of_encoder(self, index: int) -> str:
        return self.second if index else self.text


class _Part(NamedTuple):
    """One encoder's output for one chunk: hidden states (tokens, channels), and of some pooled (channels,)."""

    hidden_states: Array
    pooled: Array | None


class PromptEncoder:
    """Encodes texts for any of the checkpoints whose encoders it has.

    Args:
        encoders: the encoders of each checkpoint, from `load_text_encoders`.
        batch: rows of every forward; smaller batches are padded to it.
        max_chunks: most chunks of 75 tokens in one text.
        inversions: textual inversions by name, from an EmbeddingFolder.
        loras: the files that texts may name.
    """

    def __init__(
        self,
        encoders: Mapping[str, TextEncoders],
        batch: int,
        *,
        max_chunks: int = 8,
        inversions: Mapping[str, PromptVectors] | None = None,
        loras: LoraFiles | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        self.forwards = 0  # of a text encoder, so far
        self._batch = batch
        self._max_chunks = max_chunks
        self._inversions = inversions or {}
        self._loras = loras or LoraFiles(LoraSettings())
        self._encoders: dict[str, TextEncoders] = {}
        self._by_hash: dict[str, TextEncoders] = {}
        self._chunkers: dict[str, Chunker] = {}
        self._adapted: dict[tuple[str, int], AdaptedModel] = {}
        for checkpoint, of_checkpoint in encoders.items():
            self.add(checkpoint, of_checkpoint)

    def add(self, checkpoint: str, encoders: TextEncoders) -> None:
        """Texts may be for this checkpoint from now on."""
        self._encoders[checkpoint] = encoders
        if encoders.hash in self._by_hash:
            return
        self._by_hash[encoders.hash] = encoders
        for encoder in encoders.encoders:
            if encoder.hash not in self._chunkers:
                self._chunkers[encoder.hash] = _chunker(encoder, self._inversions, self._max_chunks)
        # a refiner has no encoders of its own, and no LoRA changes its texts
        own = zip(encoders.family.own_text_encoders, encoders.encoders, strict=False)
        for place, (component, encoder) in enumerate(own):
            model = AdaptedModel(encoder.model, component.folder, encoder.model.device)
            self._adapted[encoders.hash, place] = model

    def remove(self, encoders: str) -> set[str]:
        """Forget all checkpoints with encoders of this hash, and give back what no other ones need.

        Returns:
            The hashes of the single encoders that are left.
        """
        self._by_hash.pop(encoders, None)
        self._encoders = {name: of for name, of in self._encoders.items() if of.hash != encoders}
        left = {encoder.hash for of_checkpoint in self._by_hash.values() for encoder in of_checkpoint.encoders}
        self._chunkers = {key: chunker for key, chunker in self._chunkers.items() if key in left}
        self._adapted = {key: model for key, model in self._adapted.items() if key[0] != encoders}
        return left

    def know(self, inversions: Mapping[str, PromptVectors]) -> None:
        """Let texts name these textual inversions from now on, and no others."""
        self._inversions = inversions
        self._chunkers = {key: chunker.with_only(inversions) for key, chunker in self._chunkers.items()}

    def encode(self, texts: Sequence[PromptText]) -> list[PromptEmbedding]:
        """Encode texts; equal ones are encoded once.

        Returns:
            One embedding for each text: read-only float32 arrays of 77 tokens for each chunk.

        Raises:
            UnknownCheckpoint: a checkpoint has no encoders here.
            InvalidRequest: clip_skip leaves no layer ("clip_skip"); a text has too many chunks, or calls a textual
                inversion of another kind of model ("text" or "second").
            LoraRefused: a LoRA is for another kind of model.
        """
        keys = [self._key(*text) for text in texts]
        embeddings: dict[_Key, PromptEmbedding] = {}
        for encoders in dict.fromkeys(key.encoders for key in keys):
            of_encoders = list(dict.fromkeys(key for key in keys if key.encoders == encoders))
            embeddings |= zip(of_encoders, self._encode(self._by_hash[encoders], of_encoders), strict=True)
        return [embeddings[key] for key in keys]

    def check(self, texts: Sequence[PromptText]) -> None:
        """Raise what `encode` would raise for these texts, LoRAs aside, without encoding them."""
        for text in texts:
            key = self._key(*text)
            encoders = self._by_hash[key.encoders]
            for index, encoder in enumerate(encoders.encoders):
                for chunk in self._chunks(encoder, index, key):
                    _vectors(encoders, index, chunk)

    def _key(self, checkpoint: str, text: str, clip_skip: int, second: str | None, loras: tuple[TextLora, ...]) -> _Key:
        encoders = self._encoders.get(checkpoint)
        if encoders is None:
            raise UnknownCheckpoint(f"no text encoder for model {checkpoint!r}", "model")
        if second is not None and len(encoders.encoders) == 1:
            raise InvalidRequest(f"has no effect: model {checkpoint!r} has one text encoder", "second")
        layers = min(encoder.model.config.num_hidden_layers for encoder in encoders.encoders)
        most = layers - encoders.family.text_layer
        if not 0 <= clip_skip <= most:
            raise InvalidRequest(f"clip_skip is {clip_skip}, model {checkpoint!r} takes 0 to {most}", "clip_skip")
        return _Key(encoders.hash, text, text if second is None else second, clip_skip, loras)

    def _encode(self, encoders: TextEncoders, keys: Sequence[_Key]) -> Iterable[PromptEmbedding]:
        chunks = [
            [self._chunks(encoder, index, key) for key in keys] for index, encoder in enumerate(encoders.encoders)
        ]
        for of_key in zip(*chunks, strict=True):  # the encoders' states are joined: their texts are of one length
            longest = max(map(len, of_key))
            for of_encoder in of_key:
                of_encoder += [Chunk() for _ in range(longest - len(of_encoder))]
        parts = [
            self._encode_part(encoders, encoder, keys, of_encoder)
            for encoder, of_encoder in zip(encoders.encoders, chunks, strict=True)
        ]
        for number, (key, *of_text) in enumerate(zip(keys, *parts, strict=True)):
            hidden_states = np.concatenate(
                [np.concatenate([part.hidden_states for part in of_encoder]) for of_encoder in of_text], axis=-1
            )
            hidden_states.flags.writeable = False
            yield PromptEmbedding(
                hidden_states,
                of_text[-1][0].pooled,
                empty=key.text == key.second == "",
                inversion_hashes={
                    vectors.name: vectors.hash
                    for of_encoder in chunks
                    for chunk in of_encoder[number]
                    for _, vectors in chunk.vectors
                    if vectors.hash is not None
                },
            )

    def _chunks(self, encoder: TextEncoder, index: int, key: _Key) -> list[Chunk]:
        chunker = self._chunkers[encoder.hash]
        for file, _ in self._files(key):
            if file.embeddings:
                chunker = chunker.also_with(file.embeddings)
        try:
            return chunker.chunks(read_weights(key.of_encoder(index)))
        except InvalidRequest as error:
            raise InvalidRequest(error.message, "second" if index else "text") from None

    def _encode_part(
        self, encoders: TextEncoders, encoder: TextEncoder, keys: Sequence[_Key], chunks: Sequence[Sequence[Chunk]]
    ) -> list[list[_Part]]:
        """One encoder's output for each text's chunks."""
        place = encoders.encoders.index(encoder)
        adapters = [self._adapters(encoders, place, key) for key in keys]
        rows = [(index, chunk) for index, of_text in enumerate(chunks) for chunk in of_text]
        parts: list[list[_Part]] = [[] for _ in keys]
        for start in range(0, len(rows), self._batch):
            batch = rows[start : start + self._batch]
            ids = torch.tensor([_ids(encoder, chunk) for _, chunk in batch])
            ids = torch.cat([ids, ids[-1:].expand(self._batch - len(batch), -1)])
            vectors = [_vectors(encoders, place, chunk) for _, chunk in batch]
            adapted = [
                AdaptedRows(row, row + 1, adapters[index]) for row, (index, _) in enumerate(batch) if adapters[index]
            ]
            own = encoders.family.text_layer
            with self._with_loras(encoders, place, adapted):
                outputs = _forward(encoder, ids, vectors)
                layers = [outputs.layers[-(keys[index].clip_skip + own)][row] for row, (index, _) in enumerate(batch)]
                states = torch.stack(layers)
                hidden = _final_layer_norm(encoder, states) if own == 1 else states
            self.forwards += 1
            for row, (index, chunk) in enumerate(batch):
                pooled = None if outputs.pooled is None else _to_numpy(outputs.pooled[row])
                parts[index].append(_Part(_weighed(_to_numpy(hidden[row]), chunk.weights), pooled))
        return parts

    def _adapters(self, encoders: TextEncoders, place: int, key: _Key) -> list[Adapter]:
        """The parts of a text's LoRAs for one encoder. Raises LoraRefused if they are for another kind of model."""
        adapters = []
        for file, weight in self._files(key):
            too_many = file.updates.keys() - {"unet", *(own.folder for own in encoders.family.own_text_encoders)}
            if too_many:
                raise LoraRefused(
                    f"LoRA {file.name!r} is for another kind of model: it changes a {min(too_many)}, which this one "
                    "lacks",
                    "loras",
                )
            adapter = self._adapted[encoders.hash, place].adapter(file, weight)
            adapters += [] if adapter is None else [adapter]
        return adapters

    def _files(self, key: _Key) -> Iterator[tuple[LoraFile, float]]:
        """A text's LoRAs with their weights. Raises LoraRefused if one isn't as it was when the request was read."""
        for name, weight, hash_ in key.loras:
            file = self._loras.read(name)
            if file.hash != hash_:
                raise LoraRefused(f"LoRA {name!r} changed while the request was read: try again", "loras")
            yield file, weight

    @contextmanager
    def _with_loras(self, encoders: TextEncoders, place: int, adapted: Sequence[AdaptedRows]) -> Iterator[None]:
        """Apply LoRAs to rows of the forwards within the block."""
        if not adapted:
            yield
            return
        model = self._adapted[encoders.hash, place]
        with model.adapted(model.plan(adapted)), computing(slice(0, self._batch)):
            yield


class _Outputs(NamedTuple):
    """One forward: hidden states (rows, tokens, channels) of each layer, embeddings first; pooled (rows, channels)."""

    layers: tuple[torch.Tensor, ...]
    pooled: torch.Tensor | None


_Placed = Sequence[tuple[int, torch.Tensor]]  # position of the first token in a row, vectors (n, channels)


def _chunker(encoder: TextEncoder, inversions: Mapping[str, PromptVectors], most: int) -> Chunker:
    def tokenize(text: str) -> list[int]:
        ids: list[int] = encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    comma = encoder.tokenizer.convert_tokens_to_ids(",</w>")
    return Chunker(tokenize, _length(encoder) - 2, comma, inversions, most)


def _length(encoder: TextEncoder) -> int:
    """Tokens of a chunk with start and end: 77."""
    return int(min(encoder.tokenizer.model_max_length, encoder.model.config.max_position_embeddings))


def _ids(encoder: TextEncoder, chunk: Chunk) -> list[int]:
    """Start, tokens, end, padding."""
    tokenizer = encoder.tokenizer
    ids = [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (_length(encoder) - len(ids))


def _vectors(encoders: TextEncoders, index: int, chunk: Chunk) -> _Placed:
    """The textual inversions of a row. Raises InvalidRequest for one of another kind of model."""
    placed = []
    for position, inversion in chunk.vectors:
        # a file for SDXL has a part for each encoder, of which a refiner has the second alone
        parts = encoders.family.embedding_parts
        own = inversion.vectors[index + parts - len(encoders.encoders)] if len(inversion.vectors) == parts else None
        channels = encoders.encoders[index].model.config.hidden_size
        if own is None or own.shape[1] != channels:
            raise InvalidRequest(
                f"names the embedding {inversion.name!r}, which is for another kind of model",
                "second" if index else "text",
            )
        placed.append((1 + position, torch.from_numpy(own)))
    return placed


def _forward(encoder: TextEncoder, ids: torch.Tensor, vectors: Sequence[_Placed]) -> _Outputs:
    def place(_module: torch.nn.Module, _inputs: object, embedded: torch.Tensor) -> None:
        for row, of_row in enumerate(vectors):
            for start, tensor in of_row:
                embedded[row, start : start + len(tensor)] = tensor.to(embedded)

    hook = encoder.model.get_input_embeddings().register_forward_hook(place) if any(vectors) else None
    try:
        with torch.inference_mode():
            outputs = encoder.model(ids.to(encoder.model.device), output_hidden_states=True)
    finally:
        if hook is not None:
            hook.remove()
    return _Outputs(outputs.hidden_states, getattr(outputs, "text_embeds", None))


def _final_layer_norm(encoder: TextEncoder, states: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        normed: torch.Tensor = encoder.model.final_layer_norm(states)
    return normed


def _weighed(hidden: Array, weights: Sequence[float]) -> Array:
    """Multiply hidden states by their tokens' weights, then restore their mean, as AUTOMATIC1111 does."""
    if all(weight == 1.0 for weight in weights):
        return hidden
    factors = np.ones((len(hidden), 1), np.float32)
    factors[1 : 1 + len(weights), 0] = weights
    weighed: Array = hidden * factors
    mean = weighed.mean(dtype=np.float64)
    if mean != 0.0:
        weighed *= np.float32(hidden.mean(dtype=np.float64) / mean)
    return weighed


def _to_numpy(tensor: torch.Tensor) -> Array:
    """A contiguous float32 copy on the CPU, read-only because requests for the same text share it."""
    array: Array = tensor.float().cpu().contiguous().numpy().copy()
    array.flags.writeable = False
    return array
