"""Encodes texts with checkpoints' CLIP encoders: tokenising, batching, and a cache of embeddings.

What diffusers' `encode_prompt` computes, with two differences: batches always have the same number of rows, so that an
embedding doesn't depend on what else was asked for at the time, and checkpoints with equal encoders share
encodings. Knows nothing of requests, guidance or denoising. Runs in one thread, the one that owns the device.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from deployments.engine.checkpoints import TextEncoder, TextEncoders
from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.request import Array, PromptEmbedding


class _Key(NamedTuple):
    """What an embedding depends on: the encoders' hash, the text, the layers left out."""

    encoders: str
    text: str
    clip_skip: int


class _Part(NamedTuple):
    """What one encoder makes of one text: hidden states (tokens, channels) and, of some, pooled (channels,)."""

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

    def __init__(self, encoders: Mapping[str, TextEncoders], batch: int, cache_entries: int = 256) -> None:
        """
        encoders: by checkpoint name, of `load_text_encoders`.
        batch: rows of every forward; smaller batches are padded to it.
        cache_entries: embeddings kept, the least recently used leaves first; 0 for none.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        self._encoders = dict(encoders)
        self._by_hash = {of_checkpoint.hash: of_checkpoint for of_checkpoint in self._encoders.values()}
        self._batch = batch
        self._cache_entries = cache_entries
        self._cache: OrderedDict[_Key, PromptEmbedding] = OrderedDict()
        self._texts = self._hits = self._batches = 0

    @property
    def stats(self) -> EncodingStats:
        """What this encoder has done so far."""
        return EncodingStats(self._texts, self._hits, self._batches)

    def encode(self, texts: Sequence[tuple[str, str, int]]) -> list[PromptEmbedding]:
        """One embedding for each (checkpoint, text, clip_skip), in order; read-only float32 arrays.

        A text longer than the encoder's 77 tokens loses its end, as in diffusers. clip_skip counts layers left out
        from the family's own choice: the last layer for SD1.5, the one before it for SDXL.
        Raises UnknownCheckpoint, and InvalidRequest for a clip_skip that leaves no layer.
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

    def _key(self, checkpoint: str, text: str, clip_skip: int) -> _Key:
        encoders = self._encoders.get(checkpoint)
        if encoders is None:
            raise UnknownCheckpoint(f"no text encoder for model {checkpoint!r}", "model")
        layers = min(encoder.model.config.num_hidden_layers for encoder in encoders.encoders)
        most = layers - (1 if encoders.family == "sd15" else 2)
        if not 0 <= clip_skip <= most:
            raise InvalidRequest(f"clip_skip is {clip_skip}, model {checkpoint!r} takes 0 to {most}", "clip_skip")
        return _Key(encoders.hash, text, clip_skip)

    def _encode(self, encoders: TextEncoders, keys: Sequence[_Key]) -> Iterable[PromptEmbedding]:
        parts = [self._encode_part(encoders, encoder, keys) for encoder in encoders.encoders]
        for key, *of_text in zip(keys, *parts, strict=True):
            hidden_states = np.concatenate([part.hidden_states for part in of_text], axis=-1)
            hidden_states.flags.writeable = False
            yield PromptEmbedding(hidden_states, of_text[-1].pooled, empty=key.text == "")

    def _encode_part(self, encoders: TextEncoders, encoder: TextEncoder, keys: Sequence[_Key]) -> list[_Part]:
        rows = _tokenize(encoder, [key.text for key in keys])
        parts: list[_Part] = []
        for start in range(0, len(keys), self._batch):
            batch = rows[start : start + self._batch]
            padding = self._batch - len(batch)
            outputs = _forward(encoder, torch.cat([batch, batch[-1:].expand(padding, -1)]))
            self._batches += 1
            for row, key in enumerate(keys[start : start + self._batch]):
                # encoders of SDXL were trained on the layer before the last, without the final norm
                layer = outputs.layers[-(key.clip_skip + (1 if encoders.family == "sd15" else 2))][row]
                hidden = _final_layer_norm(encoder, layer) if encoders.family == "sd15" else layer
                pooled = None if outputs.pooled is None else _to_numpy(outputs.pooled[row])
                parts.append(_Part(_to_numpy(hidden), pooled))
        return parts

    def _remember(self, found: Mapping[_Key, PromptEmbedding], keys: Sequence[_Key]) -> None:
        for key in keys:
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)


class _Outputs(NamedTuple):
    """One forward. layers: (rows, tokens, channels) each, the embeddings first; pooled: (rows, channels) or None."""

    layers: tuple[torch.Tensor, ...]
    pooled: torch.Tensor | None


def _tokenize(encoder: TextEncoder, texts: list[str]) -> torch.Tensor:
    """Token ids (texts, 77), int64: cut or padded as diffusers does it."""
    length = min(encoder.tokenizer.model_max_length, encoder.model.config.max_position_embeddings)
    tokens = encoder.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: torch.Tensor = tokens.input_ids
    return ids


def _forward(encoder: TextEncoder, ids: torch.Tensor) -> _Outputs:
    with torch.inference_mode():
        outputs = encoder.model(ids.to(encoder.model.device), output_hidden_states=True)
    return _Outputs(outputs.hidden_states, getattr(outputs, "text_embeds", None))


def _final_layer_norm(encoder: TextEncoder, states: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        normed: torch.Tensor = encoder.model.final_layer_norm(states)
    return normed


def _to_numpy(tensor: torch.Tensor) -> Array:
    """A contiguous float32 copy on the CPU, read-only: embeddings are shared by whoever asks for the same text."""
    array: Array = tensor.float().cpu().contiguous().numpy().copy()
    array.flags.writeable = False
    return array
