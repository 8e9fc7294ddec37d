"""Scores finished images by an image classifier with an "nsfw" label, diffusers' safety checker, or both.

Loads safetensors only, through the classes and configuration keys that are named here; every tensor must be known. Runs
in the device's thread.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, ViTConfig, ViTForImageClassification
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from deployments.engine.checkpoints.configs import read_component, read_preprocessor
from deployments.engine.checkpoints.vision import (
    TRANSFORMER_KEYS,
    model_folder,
    model_input,
    only,
    read_model,
    weight_patterns,
)
from deployments.engine.errors import CheckpointError, NumericalFailure
from deployments.engine.types import Pixels, SafetyScore

UNSAFE_LABEL = "nsfw"
_CHECKER = "safety_checker"
_HUB_PATTERNS = ("*.json", *weight_patterns("", f"{_CHECKER}/"))
_VIT_KEYS = (*TRANSFORMER_KEYS[:-1], "qkv_bias", "id2label")
_PREPROCESSOR_KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip


class ImageClassifier:
    """Scores images.

    Args:
        classifier: source of a ViTForImageClassification with a label "nsfw", or None. Sources are folders, hub ids
            or "package:<package>/<folder>".
        safety_checker: source of a StableDiffusionSafetyChecker, or of a pipeline that has one, or None.
        threshold: the classifier's score from which an image is flagged, 0 to 1; the checker has its own thresholds.
        device: where the models compute.
        dtype: of their weights.

    Raises:
        CheckpointError: a source can't be loaded; names the file.
    """

    def __init__(
        self,
        classifier: str | None,
        *,
        safety_checker: str | None,
        threshold: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._threshold = threshold
        self._classifier = None if classifier is None else _Classifier(classifier, device, dtype)
        self._checker = None if safety_checker is None else _SafetyChecker(safety_checker, device, dtype)

    def __call__(self, images: Sequence[Pixels]) -> list[SafetyScore]:
        """Score images, uint8 (height, width, 3), of any sizes.

        Without a classifier the score is 1 for images that the safety checker flags, else 0.

        Raises:
            NumericalFailure: a score is not a number, which must not pass as safe.
        """
        if not images:
            return []
        flagged = self._checker.flags(images) if self._checker else [False] * len(images)
        scores = self._classifier.scores(images) if self._classifier else [float(flag) for flag in flagged]
        return [self._score(*of_image) for of_image in zip(scores, flagged, strict=True)]

    def _score(self, score: float, flagged_by_checker: bool) -> SafetyScore:
        if math.isnan(score):
            raise NumericalFailure("the image classifier's score is not a number")
        flagged_by = []
        if self._classifier and score >= self._threshold:
            flagged_by.append("classifier")
        if flagged_by_checker:
            flagged_by.append("safety_checker")
        return SafetyScore(score, bool(flagged_by), tuple(flagged_by))


class _Classifier:
    """The probability of the unsafe label."""

    def __init__(self, source: str, device: torch.device, dtype: torch.dtype) -> None:
        folder = model_folder(source, _HUB_PATTERNS)
        config = read_component(folder / "config.json", "ViTForImageClassification")
        self._label = _unsafe_label(folder / "config.json", config)
        labels = {int(index): str(label) for index, label in config["id2label"].items()}
        vit = ViTConfig(**only(_VIT_KEYS, config) | {"id2label": labels, "num_labels": len(labels)})
        self._preprocess = ViTImageProcessorPil(
            **only(_PREPROCESSOR_KEYS, read_preprocessor(folder / "preprocessor_config.json"))
        )
        self._model = read_model(ViTForImageClassification, vit, folder, device, dtype)

    def scores(self, images: Sequence[Pixels]) -> list[float]:
        pixels = model_input(self._preprocess, images, self._model)
        with torch.inference_mode():
            probabilities = self._model(pixels).logits.float().softmax(-1)[:, self._label]
        scores: list[float] = probabilities.tolist()
        return scores


class _SafetyChecker:
    """diffusers' safety checker: similarity to concepts in CLIP's space, described in arXiv:2210.04610."""

    def __init__(self, source: str, device: torch.device, dtype: torch.dtype) -> None:
        folder = model_folder(source, _HUB_PATTERNS)
        features = folder
        if (folder / _CHECKER).is_dir():
            folder, features = folder / _CHECKER, folder / "feature_extractor"
        config = read_component(folder / "config.json", "StableDiffusionSafetyChecker")
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise CheckpointError(f"{folder / 'config.json'}: expected a vision_config, found {vision!r}")
        # the checker has no text model; CLIPConfig's default for it is never built
        clip = CLIPConfig(vision_config=only(TRANSFORMER_KEYS, vision), **only(("projection_dim",), config))
        self._preprocess = CLIPImageProcessorPil(
            **only(_PREPROCESSOR_KEYS, read_preprocessor(features / "preprocessor_config.json"))
        )
        self._model = read_model(StableDiffusionSafetyChecker, clip, folder, device, dtype)
        # a similarity that is not a number would never exceed a threshold
        self._model.visual_projection.register_forward_hook(_refuse_not_a_number)
        # for each flagged image it would warn that a black one is returned, which isn't the case here
        logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)

    def flags(self, images: Sequence[Pixels]) -> list[bool]:
        pixels = model_input(self._preprocess, images, self._model)
        # it blackens the images that it flags, so it gets placeholders
        _, flagged = self._model(clip_input=pixels, images=[torch.zeros(1) for _ in images])
        return [bool(flag) for flag in flagged]


def _refuse_not_a_number(_module: torch.nn.Module, _inputs: object, embeddings: torch.Tensor) -> None:
    if not bool(torch.isfinite(embeddings).all()):
        raise NumericalFailure("the safety checker's embedding of an image is not finite")


def _unsafe_label(path: Path, config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        raise CheckpointError(f"{path}: expected id2label, found {labels!r}")
    if sorted(labels) != sorted(str(index) for index in range(len(labels))):
        raise CheckpointError(f"{path}: expected id2label to count from 0, found {sorted(labels)}")
    indices = [int(index) for index, label in labels.items() if str(label).lower() == UNSAFE_LABEL]
    if len(indices) != 1:
        raise CheckpointError(f"{path}: expected one label {UNSAFE_LABEL!r}, found {sorted(labels.values())}")
    return indices[0]
