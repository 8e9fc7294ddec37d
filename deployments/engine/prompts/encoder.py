"""Encodes texts with checkpoints' CLIP encoders: chunks of tokens, weights, batching, and a cache of embeddings.

What diffusers' `encode_prompt` computes for a text of up to 75 tokens without weights, with two differences: batches
always have the same number of rows, so that an embedding doesn't depend on what else was asked for at the time, and
checkpoints with equal encoders share encodings. A longer text takes several chunks, and weights count, as AUTOMATIC1111
has them. Knows nothing of requests, guidance or denoising. Runs in one thread, the one that owns the device.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from deployments.engine.adapters.lora import AdaptedModel, AdaptedRows, Adapter
from deployments.engine.adapters.lora_file import LoraFiles, Part
from deployments.engine.checkpoints.loader import TextEncoder, TextEncoders
from deployments.engine.config import LoraSettings
from deployments.engine.errors import InvalidRequest, LoraRefused, UnknownCheckpoint
from deployments.engine.prompts.chunking import Chunk, Chunker
from deployments.engine.prompts.schedule import PromptText, TextLora
from deployments.engine.prompts.syntax import read_weights
from deployments.engine.prompts.textual_inversion import PromptVectors
from deployments.engine.types import Array, PromptEmbedding


class _Key(NamedTuple):
    """What an embedding depends on: the encoders' hash, the texts of the first and the others, the layers left out.

    loras: what the encoders wear.
    """

    encoders: str
    text: str
    second: str
    clip_skip: int
    loras: tuple[TextLora, ...]

    def of_encoder(self, index: int) -> str:
        return self.second if index else self.text


class _Part(NamedTuple):
    """What one encoder makes of one chunk: hidden states (tokens, channels) and, of some, pooled (channels,)."""

    hidden_states: Array
    pooled: Array | None


@dataclass(frozen=True, slots=True)
class EncodingStats:
    """What an encoder has done so far: texts asked for, those found in the cache, forwards of a text encoder."""

    texts: int
    cache_hits: int
    batches: int


class PromptEncoder:
    """Encodes texts for any of the checkpoints whose encoders it was given."""

    def __init__(
        self,
        encoders: Mapping[str, TextEncoders],
        batch: int,
        cache_entries: int = 256,
        *,
        max_chunks: int = 8,
        inversions: Mapping[str, PromptVectors] | None = None,
        loras: LoraFiles | None = None,
    ) -> None:
        """
        encoders: by checkpoint name, of `load_text_encoders`.
        batch: rows of every forward; smaller batches are padded to it.
        cache_entries: embeddings kept, the least recently used leaves first; 0 for none.
        max_chunks: of 75 tokens, that one text may take.
        inversions: textual inversions by name, of `read_prompt_vectors`.
        loras: the files that texts may name.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        self._encoders = dict(encoders)
        self._by_hash = {of_checkpoint.hash: of_checkpoint for of_checkpoint in self._encoders.values()}
        self._batch = batch
        self._chunkers = {
            encoder.hash: _chunker(encoder, inversions or {}, max_chunks)
            for of_checkpoint in self._encoders.values()
            for encoder in of_checkpoint.encoders
        }
        self._loras = loras or LoraFiles(LoraSettings())
        self._adapted = {
            (of_checkpoint.hash, place): AdaptedModel(encoder.model, _PARTS[place], encoder.model.device)
            for of_checkpoint in self._by_hash.values()
            if of_checkpoint.family != "sdxl-refiner"  # which takes its base's encodings
            for place, encoder in enumerate(of_checkpoint.encoders)
        }
        self._cache_entries = cache_entries
        self._cache: OrderedDict[_Key, PromptEmbedding] = OrderedDict()
        self._texts = self._hits = self._batches = 0

    @property
    def stats(self) -> EncodingStats:
        """What this encoder has done so far."""
        return EncodingStats(self._texts, self._hits, self._batches)

    def encode(self, texts: Sequence[PromptText]) -> list[PromptEmbedding]:
        """One embedding for each text, in order; read-only float32 arrays of 77 tokens for each chunk.

        clip_skip counts layers left out from the family's own choice: the last layer for SD1.5, the one before it for
        SDXL. Raises UnknownCheckpoint, and InvalidRequest for a clip_skip that leaves no layer ("clip_skip"), for a
        text of too many chunks, and for a textual inversion that isn't one for the checkpoint ("text" or "second");
        LoraRefused.
        """
        keys = [self._key(*text) for text in texts]
        found = {key: self._cache[key] for key in keys if key in self._cache}
        missing = list(dict.fromkeys(key for key in keys if key not in found))
        for encoders in dict.fromkeys(key.encoders for key in missing):
            of_encoders = [key for key in missing if key.encoders == encoders]
            found |= zip(of_encoders, self._encode(self._by_hash[encoders], of_encoders), strict=True)
        self._texts += len(keys)
        self._hits += len(keys) - len(missing)
        self._remember(found, keys)
        return [found[key] for key in keys]

    def check(self, texts: Sequence[PromptText]) -> None:
        """Raise what `encode` would raise for these texts, their LoRAs apart; counts tokens, encodes nothing."""
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
            raise InvalidRequest(f"is of no use to model {checkpoint!r}, which has one text encoder", "second")
        layers = min(encoder.model.config.num_hidden_layers for encoder in encoders.encoders)
        most = layers - (1 if encoders.family == "sd15" else 2)
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
        for key, *of_text in zip(keys, *parts, strict=True):
            hidden_states = np.concatenate(
                [np.concatenate([part.hidden_states for part in of_encoder]) for of_encoder in of_text], axis=-1
            )
            hidden_states.flags.writeable = False
            yield PromptEmbedding(hidden_states, of_text[-1][0].pooled, empty=key.text == key.second == "")

    def _chunks(self, encoder: TextEncoder, index: int, key: _Key) -> list[Chunk]:
        try:
            return self._chunkers[encoder.hash].chunks(read_weights(key.of_encoder(index)))
        except InvalidRequest as error:
            raise InvalidRequest(error.message, "second" if index else "text") from None

    def _encode_part(
        self, encoders: TextEncoders, encoder: TextEncoder, keys: Sequence[_Key], chunks: Sequence[Sequence[Chunk]]
    ) -> list[list[_Part]]:
        """What one encoder makes of each text's chunks."""
        place = encoders.encoders.index(encoder)
        worn = [self._worn(encoders, place, key) for key in keys]
        rows = [(index, chunk) for index, of_text in enumerate(chunks) for chunk in of_text]
        parts: list[list[_Part]] = [[] for _ in keys]
        for start in range(0, len(rows), self._batch):
            batch = rows[start : start + self._batch]
            ids = torch.tensor([_ids(encoder, chunk) for _, chunk in batch])
            ids = torch.cat([ids, ids[-1:].expand(self._batch - len(batch), -1)])
            vectors = [_vectors(encoders, place, chunk) for _, chunk in batch]
            adapted = [AdaptedRows(row, row + 1, worn[index]) for row, (index, _) in enumerate(batch) if worn[index]]
            with self._wearing(encoders, place, adapted):
                outputs = _forward(encoder, ids, vectors)
            self._batches += 1
            for row, (index, chunk) in enumerate(batch):
                # encoders of SDXL were trained on the layer before the last, without the final norm
                layer = outputs.layers[-(keys[index].clip_skip + (1 if encoders.family == "sd15" else 2))][row]
                hidden = _final_layer_norm(encoder, layer) if encoders.family == "sd15" else layer
                pooled = None if outputs.pooled is None else _to_numpy(outputs.pooled[row])
                parts[index].append(_Part(_weighed(_to_numpy(hidden), chunk.weights), pooled))
        return parts

    def _worn(self, encoders: TextEncoders, place: int, key: _Key) -> list[Adapter]:
        """What a text's LoRAs have for one encoder. Raises LoraRefused if they are for another kind of model."""
        worn = []
        for name, weight, hash_ in key.loras:
            file = self._loras.read(name)
            if file.hash != hash_:
                raise LoraRefused(f"LoRA {name!r} was changed in this very moment: ask again", "loras")
            too_many = file.updates.keys() - {"unet", *_PARTS[: len(encoders.encoders)]}
            if too_many:
                raise LoraRefused(
                    f"LoRA {name!r} is for another kind of model: it changes a {min(too_many)}, which this one hasn't",
                    "loras",
                )
            adapter = self._adapted[encoders.hash, place].adapter(file, weight)
            worn += [] if adapter is None else [adapter]
        return worn

    @contextmanager
    def _wearing(self, encoders: TextEncoders, place: int, adapted: Sequence[AdaptedRows]) -> Iterator[None]:
        """Rows of a forward with LoRAs on; without any the encoder is left alone."""
        if not adapted:
            yield
            return
        model = self._adapted[encoders.hash, place]
        with model.adapted(model.plan(adapted)), model.rows(slice(0, self._batch)):
            yield

    def _remember(self, found: Mapping[_Key, PromptEmbedding], keys: Sequence[_Key]) -> None:
        for key in keys:
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)


_PARTS: tuple[Part, ...] = ("text_encoder", "text_encoder_2")


class _Outputs(NamedTuple):
    """One forward. layers: (rows, tokens, channels) each, the embeddings first; pooled: (rows, channels) or None."""

    layers: tuple[torch.Tensor, ...]
    pooled: torch.Tensor | None


_Placed = Sequence[tuple[int, torch.Tensor]]  # first token's place in a row, vectors (n, channels)


def _chunker(encoder: TextEncoder, inversions: Mapping[str, PromptVectors], most: int) -> Chunker:
    def tokenize(text: str) -> list[int]:
        ids: list[int] = encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    comma = encoder.tokenizer.convert_tokens_to_ids(",</w>")
    return Chunker(tokenize, _length(encoder) - 2, comma, inversions, most)


def _length(encoder: TextEncoder) -> int:
    """Tokens of a chunk, start and end included: 77."""
    return int(min(encoder.tokenizer.model_max_length, encoder.model.config.max_position_embeddings))


def _ids(encoder: TextEncoder, chunk: Chunk) -> list[int]:
    """Start, tokens, end, padding."""
    tokenizer = encoder.tokenizer
    ids = [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (_length(encoder) - len(ids))


def _vectors(encoders: TextEncoders, index: int, chunk: Chunk) -> _Placed:
    """The textual inversions of a row. Raises InvalidRequest for one that was made for other encoders."""
    placed = []
    for position, inversion in chunk.vectors:
        # a file for SDXL has a part for each encoder, of which a refiner has the second alone
        parts = 1 if encoders.family == "sd15" else 2
        mine = inversion.vectors[index + parts - len(encoders.encoders)] if len(inversion.vectors) == parts else None
        channels = encoders.encoders[index].model.config.hidden_size
        if mine is None or mine.shape[1] != channels:
            raise InvalidRequest(
                f"calls the embedding {inversion.name!r}, which was made for another kind of model",
                "second" if index else "text",
            )
        placed.append((1 + position, torch.from_numpy(mine)))
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
    """One chunk's hidden states times its tokens' weights, brought back to the mean that they had; A1111's rule."""
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
    """A contiguous float32 copy on the CPU, read-only: embeddings are shared by whoever asks for the same text."""
    array: Array = tensor.float().cpu().contiguous().numpy().copy()
    array.flags.writeable = False
    return array
