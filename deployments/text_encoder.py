"""Encodes prompts: one batch for the texts of many requests, none for a text that was encoded before.

Encoding takes milliseconds and is bound by reading the weights, so texts share batches across requests
(`@serve.batch`) and checkpoints. The refiner needs no encoding of its own: it takes a part of the base's.
Knows nothing of denoising, HTTP or jobs.
"""

import asyncio
import contextvars
import functools
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ray import serve

from deployments.device_claim import claim_device, settings_for
from deployments.engine.checkpoint_spec import CheckpointSpec
from deployments.engine.errors import UnknownCheckpoint
from deployments.engine.request import Conditioning, PromptEmbedding, TextEncodingRequest
from deployments.metrics import EncoderMetrics
from deployments.stage import StageDescription
from deployments.stage_settings import TextEncoderSettings

logger = logging.getLogger("ray.serve")


class Text(NamedTuple):
    """What one embedding depends on."""

    checkpoint: str
    text: str
    clip_skip: int


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """What a replica has done: batches, the texts in them, and texts that needed none (cached or on their
    way).
    """

    batches: int
    texts: int
    hits: int


class TextEncoder:
    """The text encoders of every checkpoint in the catalogue, on one device."""

    def __init__(self, settings: TextEncoderSettings, catalogue: Mapping[str, CheckpointSpec]) -> None:
        from deployments.engine.checkpoints import load_text_encoders
        from deployments.engine.device_thread import DeviceThread
        from deployments.engine.prompts import PromptEncoder

        self._claim = claim_device()
        self._thread = DeviceThread(settings_for(self._claim, settings.device))
        encoders = {}
        for name, spec in catalogue.items():
            logger.info("Loading the text encoders of %s", name)
            encoders[name] = self._thread.submit(
                load_text_encoders, spec, self._thread.device, self._thread.dtype
            ).result()
        self._encoder = PromptEncoder(encoders, settings.max_batch)
        self._checkpoints = tuple(catalogue)
        # tasks and not embeddings, so that requests for the same text share an encoding that is on its way
        self._embeddings: OrderedDict[Text, asyncio.Task[PromptEmbedding]] = OrderedDict()
        self._cache_entries = settings.cache_entries
        self._metrics = EncoderMetrics()
        self._batches = self._texts = self._hits = 0
        self._encode_texts.set_max_batch_size(settings.max_batch)
        self._encode_texts.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def encode(self, request: TextEncodingRequest) -> Conditioning:
        """The embeddings of a prompt and of its negative prompt. Raises UnknownCheckpoint."""
        if request.checkpoint not in self._checkpoints:
            raise UnknownCheckpoint(f"no text encoder for model {request.checkpoint!r}", "model")
        texts = (
            [request.prompt] if request.negative_prompt is None else [request.prompt, request.negative_prompt]
        )
        embeddings = await asyncio.gather(
            *(self._embedding(Text(request.checkpoint, text, request.clip_skip)) for text in texts)
        )
        return Conditioning(embeddings[0], embeddings[1] if len(embeddings) == 2 else None)

    async def stats(self) -> EncoderStats:
        """What this replica has done so far."""
        return EncoderStats(self._batches, self._texts, self._hits)

    async def describe(self) -> StageDescription:
        """The replica's device, claim and checkpoints."""
        context = serve.get_replica_context()
        return StageDescription(
            name=context.deployment,
            replica_id=context.replica_id.unique_id,
            device=str(self._thread.device),
            dtype=str(self._thread.dtype).removeprefix("torch."),
            claim=self._claim.gpus,
            gpu_ids=self._claim.gpu_ids,
            visible_devices=self._claim.visible_devices,
            checkpoints=self._checkpoints,
        )

    def check_health(self) -> None:
        """Serve's health check: raises EngineStopped if the device was lost."""
        self._thread.check()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self._thread.close()

    async def _embedding(self, text: Text) -> PromptEmbedding:
        """From the cache, from an encoding on its way, or from a new one."""
        task = self._embeddings.get(text)
        if task is None:
            # its own context: the encoding belongs to no single request, and lives on when the first leaves
            task = asyncio.create_task(self._encode(text), context=contextvars.Context())
            task.add_done_callback(functools.partial(self._forget_failed, text))
            self._embeddings[text] = task
            while len(self._embeddings) > self._cache_entries:
                self._embeddings.popitem(last=False)
        else:
            self._embeddings.move_to_end(text)
            self._hits += 1
            self._metrics.hit()
        return await asyncio.shield(task)

    def _forget_failed(self, text: Text, task: asyncio.Task[PromptEmbedding]) -> None:
        """A failure isn't remembered: the next request for the text tries again."""
        failed = task.cancelled() or task.exception() is not None
        if failed and self._embeddings.get(text) is task:
            del self._embeddings[text]

    async def _encode(self, text: Text) -> PromptEmbedding:
        result = await self._encode_texts(text)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch
    async def _encode_texts(self, texts: list[Text]) -> list[PromptEmbedding | Exception]:
        """One result a text. Failures are values here: a raised one would fail every text of the batch."""
        self._batches += 1
        self._texts += len(texts)
        self._metrics.batch(len(texts))
        try:
            return [*await self._thread.run(self._encoder.encode, texts)]
        except Exception as error:
            if len(texts) == 1:
                return [error]
            logger.warning("A batch of %d texts failed (%s); each is tried alone", len(texts), error)
        return [await self._encode_alone(text) for text in texts]

    async def _encode_alone(self, text: Text) -> PromptEmbedding | Exception:
        try:
            return (await self._thread.run(self._encoder.encode, [text]))[0]
        except Exception as error:
            return error
