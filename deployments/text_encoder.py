"""Encodes prompts and reference pictures: those of many requests in one batch, and none that is cached.

Encoding takes milliseconds and, on a GPU, is limited by reading the weights, so texts share batches across requests and
checkpoints there. The refiner needs no encoding of its own: it uses a part of the base's.
"""

import asyncio
import contextvars
import functools
import hashlib
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ray import serve

from deployments.batched_stage import BatchedStage
from deployments.config import TextEncoderSettings
from deployments.dispatch import Dispatch
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
    from deployments.engine.prompts.textual_inversion import PromptVectors

logger = logging.getLogger("ray.serve")

K = TypeVar("K")
V = TypeVar("V")
# between two looks at the folder of textual inversions
_LOOK_S = 0.5

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
            from deployments.engine.conditioning.image_encoder import ImageEncoder, ImageEncoders
            from deployments.engine.prompts.encoder import PromptEncoder
            from deployments.engine.prompts.textual_inversion import EmbeddingFolder

        super().__init__(settings.device)
        texts_at_once, pictures_at_once = map(self._thread.batch, (settings.max_batch, ip_adapters.max_batch))
        self._loras = LoraFiles(loras or LoraSettings())
        self._inversions = EmbeddingFolder(settings.embeddings)
        self._known_inversions = self._inversions.entries()
        self._look_at = time.monotonic() + _LOOK_S
        self._encoder = PromptEncoder(
            {},
            texts_at_once,
            max_chunks=settings.max_chunks,
            inversions=self._known_inversions,
            loras=self._loras,
        )
        self._parts: dict[str, TextEncoderPart] = {}  # by their hashes
        self._hashes: dict[str, str] = {}  # of each checkpoint's encoders
        self._encoded_as: dict[str, str] = {}  # by that hash, the checkpoint that texts are encoded for
        for name, spec in catalogue.items():
            self._thread.submit(self._load, name, spec).result()
        # those that came with requests; futures, so that requests for the same one share its loading
        self._added: OrderedDict[str, asyncio.Future[None]] = OrderedDict()
        seeing = []
        for source in ip_adapters.encoders:
            logger.info("Loading the image encoder %s", source)
            seeing.append(self._thread.submit(ImageEncoder, source, self._thread.device, self._thread.dtype).result())
        self._seeing = ImageEncoders(seeing, pictures_at_once)
        self._features: _Features = OrderedDict()
        self._kept_features = ip_adapters.cache_entries
        self._pictures = 0
        self._see_pictures.set_max_batch_size(pictures_at_once)
        # futures, so that requests for the same text share an unfinished encoding
        self._embeddings: OrderedDict[PromptText, asyncio.Future[PromptEmbedding]] = OrderedDict()
        self._cache_entries = settings.cache_entries
        self._metrics = EncoderMetrics()
        self._batches = self._texts = self._hits = 0
        self._encode_texts.set_max_batch_size(texts_at_once)
        self._wait_s, self._burst_wait_s = settings.batch_wait_s, settings.burst_wait_s
        self._see_pictures.set_batch_wait_timeout_s(self._burst_wait_s)
        self._last_miss = float("-inf")
        self._encode_the_empty_text()

    async def encode(self, request: TextEncodingRequest) -> Conditioning:
        """The embeddings of a prompt and of its negative prompt, as they change over the steps, and of its references.

        Raises UnknownCheckpoint, LoraRefused, and InvalidRequest for texts and pictures that can't be encoded.
        """
        since = time.monotonic()
        await self._take_in(request)
        await self._look_for_inversions()
        loras, of_regions = await self._read_loras(request)
        schedule = self._schedule(request, loras, of_regions)
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
        await self._take_in(request)
        await self._look_for_inversions()
        schedule = self._schedule(request)
        for text in schedule.texts:
            try:
                await self._thread.run(self._encoder.check, [text])
            except InvalidRequest as error:
                raise schedule.in_field(error, text) from None

    async def retain(self, added: Sequence[str], _dispatch: Dispatch) -> None:
        """Forget the checkpoints that came with requests and aren't among these.

        The Dispatch names the replica that this is for.
        """
        leaving = [name for name, loading in self._added.items() if name not in added and loading.done()]
        for name in leaving:
            del self._added[name]
        unknown = await self._thread.run(self._unload, leaving)
        for text in [text for text in self._embeddings if text.checkpoint in unknown]:
            del self._embeddings[text]

    async def _take_in(self, request: TextEncodingRequest) -> None:
        """Load the encoders of a checkpoint that the request brings, the first time. Raises CheckpointError."""
        name, spec = request.checkpoint, request.spec
        if spec is not None and (name in self._added or name not in self._hashes):
            await _kept(self._added, name, functools.partial(self._thread.run, self._load, name, spec), sys.maxsize)

    async def _look_for_inversions(self) -> None:
        """Take in files of textual inversions that have come, gone or changed, if nobody has looked lately."""
        if self._inversions.folder is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_S
        try:
            present = await asyncio.to_thread(self._inversions.entries)
        except OSError as error:  # of a folder on a network, for which no image has to fail
            logger.warning("The folder of textual inversions can't be read: %s", error)
            return
        if _hashes_of(present) != _hashes_of(self._known_inversions):
            self._known_inversions = present
            await self._thread.run(self._encoder.know, present)
            self._embeddings.clear()  # any text may mean something else now

    def _load(self, name: str, spec: CheckpointSpec) -> None:
        """Load a checkpoint's encoders. Variants often share them, and then the embeddings. Runs in the thread."""
        from deployments.engine.checkpoints.loader import load_text_encoders

        logger.info("Loading the text encoders of %s", name)
        encoders = load_text_encoders(spec, self._thread.device, self._thread.dtype, self._parts)
        if encoders.hash not in self._encoded_as:
            self._encoder.add(name, encoders)
            self._encoded_as[encoders.hash] = name
        self._hashes[name] = encoders.hash
        self._checkpoints = tuple(self._hashes)

    def _unload(self, names: Sequence[str]) -> set[str]:
        """Give back the memory of checkpoints' encoders that no other checkpoint has. Runs in the thread.

        Returns:
            The checkpoints for which no text is encoded any more.
        """
        from deployments.engine.device import release_memory

        unknown = set()
        for encoders in {self._hashes.pop(name) for name in names} - set(self._hashes.values()):
            left = self._encoder.remove(encoders)
            self._parts = {name: part for name, part in self._parts.items() if name in left}
            unknown.add(self._encoded_as.pop(encoders))
            release_memory()
        self._checkpoints = tuple(self._hashes)
        return unknown

    async def _read_loras(
        self, request: TextEncodingRequest
    ) -> tuple[tuple[TextLora, ...], Sequence[tuple[TextLora, ...]]]:
        """The LoRAs of a request that change text encoders, and those of its regions. Raises LoraRefused."""
        if not (request.loras or any(request.region_loras)):
            return (), ()
        return await asyncio.to_thread(lambda: (self._loras.of_text(request.loras), self._loras.of_regions(request)))

    def _schedule(
        self,
        request: TextEncodingRequest,
        loras: tuple[TextLora, ...] = (),
        region_loras: Sequence[tuple[TextLora, ...]] = (),
    ) -> PromptSchedule:
        encoded_as = self._encoded_as.get(self._hashes.get(request.checkpoint, ""))
        if encoded_as is None:
            raise UnknownCheckpoint(f"no text encoder for model {request.checkpoint!r}", "model")
        return PromptSchedule.of(replace(request, checkpoint=encoded_as), loras, region_loras)

    async def stats(self) -> EncoderStats:
        """The replica's counters."""
        return EncoderStats(
            self._batches, self._encoder.forwards, self._texts, self._hits, self._seeing.forwards, self._pictures
        )

    def _encode_the_empty_text(self) -> None:
        """Cache the empty text, which is most requests' negative prompt. This also warms the encoders up."""
        for checkpoint in self._encoded_as.values():
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


def _hashes_of(inversions: Mapping[str, "PromptVectors"]) -> dict[str, str | None]:
    return {name: vectors.hash for name, vectors in inversions.items()}


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
