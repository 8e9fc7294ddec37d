"""Encodes prompts and reference pictures: those of many requests in one batch, and none that is cached.

Encoding takes milliseconds and is limited by reading the weights, so texts share batches across requests and
checkpoints. The refiner needs no encoding of its own: it uses a part of the base's.
"""

import asyncio
import contextvars
import functools
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ray import serve

from deployments.batched_stage import BatchedStage
from deployments.config import TextEncoderSettings
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import NO_IP_ADAPTERS, IpAdapterSettings, LoraSettings
from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.prompts.schedule import PromptSchedule, PromptText, TextLora
from deployments.engine.types import (
    Conditioning,
    PromptEmbedding,
    ReferenceFeatures,
    ReferencePicture,
    TextEncodingRequest,
)
from deployments.metrics import EncoderMetrics
from deployments.replica import without_garbage_collection

if TYPE_CHECKING:
    from deployments.engine.checkpoints.loader import TextEncoder as TextEncoderPart
    from deployments.engine.checkpoints.loader import TextEncoders

logger = logging.getLogger("ray.serve")

K = TypeVar("K")
V = TypeVar("V")
_PictureKey = tuple[tuple[str, tuple[int, ...]], bool, int]
_Features = OrderedDict[_PictureKey, "asyncio.Future[ReferenceFeatures]"]


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """Counters of a replica.

    Args:
        batches: batches of texts.
        forwards: forwards of a text encoder (SDXL has two encoders).
        texts: texts that were encoded.
        hits: texts that were cached or being encoded already.
        picture_forwards: forwards of an image encoder.
        pictures: reference pictures that were encoded.
    """

    batches: int
    forwards: int
    texts: int
    hits: int
    picture_forwards: int
    pictures: int


class TextEncoder(BatchedStage):
    """The text encoders of every checkpoint in the catalogue, and the image encoders, on one device.

    Args:
        settings: the stage's settings.
        catalogue: checkpoints by model name.
        loras: the folder of LoRAs.
        ip_adapters: the image encoders for reference pictures.
    """

    def __init__(
        self,
        settings: TextEncoderSettings,
        catalogue: Mapping[str, CheckpointSpec],
        loras: LoraSettings | None = None,
        ip_adapters: IpAdapterSettings = NO_IP_ADAPTERS,
    ) -> None:
        with without_garbage_collection():
            from deployments.engine.adapters.lora_file import LoraFiles
            from deployments.engine.checkpoints.loader import load_text_encoders
            from deployments.engine.conditioning.image_encoder import ImageEncoder, ImageEncoders
            from deployments.engine.prompts.encoder import PromptEncoder
            from deployments.engine.prompts.textual_inversion import EmbeddingFolder

        super().__init__(settings.device)
        encoders: dict[str, TextEncoders] = {}
        shared: dict[str, TextEncoderPart] = {}
        for name, spec in catalogue.items():
            logger.info("Loading the text encoders of %s", name)
            loading = self._thread.submit(load_text_encoders, spec, self._thread.device, self._thread.dtype, shared)
            encoders[name] = loading.result()
        self._loras = LoraFiles(loras or LoraSettings())
        self._encoder = PromptEncoder(
            encoders,
            settings.max_batch,
            max_chunks=settings.max_chunks,
            inversions=EmbeddingFolder(settings.embeddings).entries(),
            loras=self._loras,
        )
        seeing = []
        for source in ip_adapters.encoders:
            logger.info("Loading the image encoder %s", source)
            seeing.append(self._thread.submit(ImageEncoder, source, self._thread.device, self._thread.dtype).result())
        self._seeing = ImageEncoders(seeing, ip_adapters.max_batch)
        self._features: _Features = OrderedDict()
        self._kept_features = ip_adapters.cache_entries
        self._pictures = 0
        self._see_pictures.set_max_batch_size(ip_adapters.max_batch)
        # variants of a checkpoint often share its encoders, and then its embeddings
        first_with = {of_checkpoint.hash: name for name, of_checkpoint in reversed(encoders.items())}
        self._encoded_by = {name: first_with[of_checkpoint.hash] for name, of_checkpoint in encoders.items()}
        self._checkpoints = tuple(encoders)
        # futures, so that requests for the same text share an unfinished encoding
        self._embeddings: OrderedDict[PromptText, asyncio.Future[PromptEmbedding]] = OrderedDict()
        self._cache_entries = settings.cache_entries
        self._metrics = EncoderMetrics()
        self._batches = self._texts = self._hits = 0
        self._encode_texts.set_max_batch_size(settings.max_batch)
        self._wait_s, self._burst_wait_s = settings.batch_wait_s, settings.burst_wait_s
        self._see_pictures.set_batch_wait_timeout_s(self._burst_wait_s)
        self._last_miss = float("-inf")
        self._encode_the_empty_text()

    async def encode(self, request: TextEncodingRequest) -> Conditioning:
        """The embeddings of a prompt and of its negative prompt, as they change over the steps, and of its references.

        Raises UnknownCheckpoint, LoraRefused, and InvalidRequest for texts and pictures that can't be encoded.
        """
        since = time.monotonic()
        loras = await asyncio.to_thread(self._loras.of_text, request.loras) if request.loras else ()
        schedule = self._schedule(request, loras)
        texts = schedule.texts
        if any(text not in self._embeddings for text in texts):
            self._set_wait()

        async def embedding(text: PromptText) -> PromptEmbedding:
            try:
                return await self._embedding(text)
            except InvalidRequest as error:
                raise schedule.in_field(error, text) from None

        embeddings, references = await asyncio.gather(
            asyncio.gather(*map(embedding, texts)), asyncio.gather(*map(self._seen, request.references))
        )
        encoded = schedule.conditioning(dict(zip(texts, embeddings, strict=True)))
        return replace(encoded, references=tuple(references), encode_s=time.monotonic() - since)

    async def check(self, request: TextEncodingRequest) -> None:
        """Raise UnknownCheckpoint or InvalidRequest as `encode` would, LoRAs aside, without encoding."""
        schedule = self._schedule(request)
        for text in schedule.texts:
            try:
                await self._thread.run(self._encoder.check, [text])
            except InvalidRequest as error:
                raise schedule.in_field(error, text) from None

    def _schedule(self, request: TextEncodingRequest, loras: tuple[TextLora, ...] = ()) -> PromptSchedule:
        encoded_by = self._encoded_by.get(request.checkpoint)
        if encoded_by is None:
            raise UnknownCheckpoint(f"no text encoder for model {request.checkpoint!r}", "model")
        return PromptSchedule.of(replace(request, checkpoint=encoded_by), loras)

    async def stats(self) -> EncoderStats:
        """The replica's counters."""
        return EncoderStats(
            self._batches, self._encoder.forwards, self._texts, self._hits, self._seeing.forwards, self._pictures
        )

    def _encode_the_empty_text(self) -> None:
        """Cache the empty text, which is most requests' negative prompt. This also warms the encoders up."""
        for checkpoint in dict.fromkeys(self._encoded_by.values()):
            text = PromptText(checkpoint, "")
            done: asyncio.Future[PromptEmbedding] = asyncio.get_running_loop().create_future()
            done.set_result(self._thread.submit(self._encoder.encode, [text]).result()[0])
            self._embeddings[text] = done

    def _set_wait(self) -> None:
        """Keep the next batch open longer while requests follow each other closely."""
        now = time.monotonic()
        burst = now - self._last_miss < self._burst_wait_s
        self._last_miss = now
        self._encode_texts.set_batch_wait_timeout_s(self._burst_wait_s if burst else self._wait_s)

    async def _embedding(self, text: PromptText) -> PromptEmbedding:
        """The embedding from the cache, from an unfinished encoding, or from a new one."""
        if text in self._embeddings:
            self._hits += 1
            self._metrics.hit()
        return await _kept(self._embeddings, text, lambda: self._encode(text), self._cache_entries)

    async def _seen(self, picture: ReferencePicture) -> ReferenceFeatures:
        """A picture's features, likewise."""
        name = hashlib.sha256(picture.pixels.tobytes()).hexdigest(), picture.pixels.shape
        key = name, picture.patches, picture.channels
        return await _kept(self._features, key, lambda: self._see(picture), self._kept_features)

    async def _see(self, picture: ReferencePicture) -> ReferenceFeatures:
        result: ReferenceFeatures | Exception = await self._see_pictures(picture)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch
    async def _see_pictures(self, pictures: list[ReferencePicture]) -> list[ReferenceFeatures | Exception]:
        self._pictures += len(pictures)
        return await self._run_batch(self._seeing.see, pictures)

    async def _encode(self, text: PromptText) -> PromptEmbedding:
        result: PromptEmbedding | Exception = await self._encode_texts(text)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch
    async def _encode_texts(self, texts: list[PromptText]) -> list[PromptEmbedding | Exception]:
        self._batches += 1
        self._texts += len(texts)
        self._metrics.batch(len(texts))
        return await self._run_batch(self._encoder.encode, texts)


async def _kept(
    cache: OrderedDict[K, asyncio.Future[V]], key: K, encode: Callable[[], Coroutine[Any, Any, V]], most: int
) -> V:
    """The value from the cache, from an unfinished encoding, or from a new one; the cache keeps `most`."""
    encoding = cache.get(key)
    if encoding is None:
        # a context of its own, because the encoding outlives the request that started it
        encoding = asyncio.create_task(encode(), context=contextvars.Context())
        encoding.add_done_callback(functools.partial(_forget_failed, cache, key))
        cache[key] = encoding
        while len(cache) > most:
            cache.popitem(last=False)
    else:
        cache.move_to_end(key)
    return await asyncio.shield(encoding)


def _forget_failed(cache: OrderedDict[K, asyncio.Future[V]], key: K, encoding: asyncio.Future[V]) -> None:
    """Remove a failed encoding, so that the next request for it tries again."""
    failed = encoding.cancelled() or encoding.exception() is not None
    if failed and cache.get(key) is encoding:
        del cache[key]
