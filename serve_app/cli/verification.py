"""Loads the checkpoints of a configuration as the stages do, one after the other, and says what is wrong with each.

On the CPU, in 16 bits: what is checked are the files. Nothing is kept, nothing is drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from deployments.engine.checkpoints.loader import load_denoiser, load_text_encoders
from deployments.engine.config import DeviceSettings
from deployments.engine.device_thread import DeviceThread
from deployments.engine.errors import CheckpointError
from deployments.engine.safety_classifier import ImageClassifier
from serve_app.config.hub_checkpoints import SAFETY
from serve_app.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Verified:
    """A part of a checkpoint: a denoiser's hash as in manifests, or the error."""

    checkpoint: str
    part: str
    source: str
    hash: str | None
    error: str | None


def verify(settings: Settings, names: Sequence[str] | None) -> Iterator[Verified]:
    """The parts of these models, each as it is done; `names` is None for all models and the safety layers."""
    with closing(DeviceThread(DeviceSettings(device="cpu", dtype="bfloat16"))) as thread:

        def load(checkpoint: str, part: str, source: str, loading: Callable[[], str | None]) -> Verified:
            try:
                found = thread.submit(loading).result()
            except CheckpointError as error:
                return Verified(checkpoint, part, source, None, error.message)
            return Verified(checkpoint, part, source, found, None)

        def denoiser(name: str) -> str | None:
            return load_denoiser(settings.models[name].checkpoint(), thread.device, thread.dtype).hash

        def text_encoders(name: str) -> str | None:
            load_text_encoders(settings.models[name].checkpoint(), thread.device, thread.dtype)
            return None

        def layer(classifier: str | None, safety_checker: str | None) -> str | None:
            ImageClassifier(
                classifier, safety_checker=safety_checker, threshold=0.5, device=thread.device, dtype=thread.dtype
            )
            return None

        for name in names or settings.models:
            model = settings.models[name]
            yield load(name, "UNet and VAE", model.source, partial(denoiser, name))
            if not model.refines:  # a refiner has none of its own to load
                yield load(name, "text encoders", model.source, partial(text_encoders, name))
        safety = settings.safety
        if names is None and safety.mode != "off":
            if safety.classifier is not None:
                yield load(SAFETY, "classifier", safety.classifier, partial(layer, safety.classifier, None))
            if safety.safety_checker is not None:
                yield load(SAFETY, "checker", safety.safety_checker, partial(layer, None, safety.safety_checker))
