"""CLIP's vision models, which see the reference pictures for IP-Adapters. Run in the device's thread."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from deployments.engine.checkpoints.configs import read_component
from deployments.engine.checkpoints.files import hash_files
from deployments.engine.checkpoints.vision import (
    TRANSFORMER_KEYS,
    model_folder,
    model_input,
    only,
    read_model,
    weight_patterns,
)
from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Array, Pixels, ReferenceFeatures, ReferencePicture

_HUB_PATTERNS = ("*.json", *weight_patterns(""))


class ImageEncoder:
    """Features of reference pictures, as diffusers' `encode_image` makes them.

    Args:
        source: of a CLIPVisionModelWithProjection, such as the `image_encoder` folders of h94/IP-Adapter: a folder, a
            hub id or "package:<package>/<folder>".
        device: where it computes.
        dtype: of its weights.

    Raises:
        CheckpointError: the source can't be loaded; names the file.
    """

    def __init__(self, source: str, device: torch.device, dtype: torch.dtype) -> None:
        folder = model_folder(source, _HUB_PATTERNS)
        config = CLIPVisionConfig(
            **only(TRANSFORMER_KEYS, read_component(folder / "config.json", "CLIPVisionModelWithProjection"))
        )
        self._model = read_model(CLIPVisionModelWithProjection, config, folder, device, dtype)
        self.hash = hash_files(sorted(folder.glob("*.safetensors")))
        self.projection_channels = int(config.projection_dim)
        self.patch_channels = int(config.hidden_size)
        size = int(config.image_size)
        # what diffusers takes where a pipeline has no preprocessor of its own, and h94's encoders come with none
        self._preprocess = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size)
        self._no_picture: Array | None = None

    def fits(self, picture: ReferencePicture) -> bool:
        """Whether it makes what the picture's IP-Adapter takes."""
        return picture.channels == (self.patch_channels if picture.patches else self.projection_channels)

    def projections(self, pictures: Sequence[Pixels]) -> list[ReferenceFeatures]:
        """The projection of each picture, (height, width, 3) uint8; zeros stand for none."""
        with torch.inference_mode():
            embeds = self._model(self._input(pictures)).image_embeds
        return [ReferenceFeatures(one, np.zeros_like(one)) for one in _arrays(embeds)]

    def patches(self, pictures: Sequence[Pixels]) -> list[ReferenceFeatures]:
        """The states of the last layer but one of each picture; those of an input of zeros stand for none."""
        if self._no_picture is None:
            self._no_picture = _arrays(self._states(torch.zeros_like(self._input(pictures[:1]))))[0]
        negative = self._no_picture
        return [ReferenceFeatures(one, negative) for one in _arrays(self._states(self._input(pictures)))]

    def _input(self, pictures: Sequence[Pixels]) -> torch.Tensor:
        return model_input(self._preprocess, pictures, self._model)

    def _states(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = self._model(pixels, output_hidden_states=True).hidden_states[-2]
        return states


class ImageEncoders:
    """The image encoders of a service, by what they make.

    Args:
        encoders: at least one of those that the IP-Adapters were trained with.
        batch: pictures of each forward, which is filled up to it, so that features don't depend on what else is seen.
    """

    def __init__(self, encoders: Sequence[ImageEncoder], batch: int) -> None:
        self._encoders = encoders
        self._batch = batch
        self.forwards = 0

    def see(self, pictures: Sequence[ReferencePicture]) -> list[ReferenceFeatures]:
        """The features of each picture. Raises InvalidRequest for one that no encoder is for."""
        groups: dict[tuple[ImageEncoder, bool], list[int]] = {}
        for index, picture in enumerate(pictures):
            groups.setdefault((self._encoder_for(picture), picture.patches), []).append(index)
        seen: dict[int, ReferenceFeatures] = {}
        for (encoder, patches), indices in groups.items():
            for start in range(0, len(indices), self._batch):
                part = indices[start : start + self._batch]
                filled = [pictures[index].pixels for index in (part + part[-1:] * self._batch)[: self._batch]]
                features = encoder.patches(filled) if patches else encoder.projections(filled)
                self.forwards += 1
                seen |= zip(part, features, strict=False)
        return [seen[index] for index in range(len(pictures))]

    def _encoder_for(self, picture: ReferencePicture) -> ImageEncoder:
        for encoder in self._encoders:
            if encoder.fits(picture):
                return encoder
        raise InvalidRequest(
            f"the IP-Adapter takes {picture.channels} channels of {'each patch' if picture.patches else 'a picture'}, "
            "which no image encoder here makes (ip_adapters.encoders)",
            "references",
        )


def _arrays(tensors: torch.Tensor) -> list[Array]:
    return list(tensors.float().cpu().numpy())
