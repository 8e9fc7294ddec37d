"""Reads reference pictures for IP-Adapters and their masks, and brings stored ones to a pass.

A picture is stored as it came, because the image encoder scales it itself. The work takes tens of milliseconds: call it
in a thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder, IpAdapterSource
from deployments.engine.errors import InvalidRequest
from deployments.engine.types import MAX_REFERENCES, Pixels, Reference
from serve_app.images.decode import Source, SourceImage, read_mask, read_picture
from serve_app.images.inpainting import Frame
from serve_app.images.stored_pictures import Size, kept
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.resolved import ResolvedGeneration


@dataclass(frozen=True, slots=True)
class ReferenceSource:
    """A decoded reference of a request, and its IP-Adapter."""

    picture: SourceImage
    mask: SourceImage | None
    adapter: IpAdapterSource


def read_references(
    request: GenerationRequest, source: Source | None, adapters: IpAdapterFolder, max_pixels: int
) -> list[ReferenceSource]:
    """The references of a request; the picture of one that has none is the `source` that the request begins with.

    Raises InvalidRequest for one without either, and IpAdapterRefused.
    """
    sources = []
    for index, reference in enumerate(request.references[:MAX_REFERENCES]):
        field = f"references.{index}"
        if reference.image is not None:
            picture = read_picture(f"{field}.image", reference.image, max_pixels)
        elif source is not None:
            picture = source.image
        else:
            raise InvalidRequest(
                f"{field}.image is missing, and the request has no image to take instead", f"{field}.image"
            )
        mask = None if reference.mask is None else read_mask(f"{field}.mask", reference.mask, max_pixels)
        sources.append(ReferenceSource(picture, mask, adapters.find(reference.model)))
    return sources


def kept_references(request: GenerationRequest, references: Sequence[ReferenceSource], size: Size) -> list[bytes]:
    """The pictures and masks of a generation's references as they are stored, each mask behind its picture.

    Args:
        request: of the generation, which leaves out those of scale 0.
        references: of the request, in its order.
        size: of stored masks.
    """
    files = []
    for asked, reference in zip(request.references, references, strict=True):
        if asked.scale:
            files.append(kept(reference.picture.pixels))
            if reference.mask is not None:
                files.append(kept(reference.mask.pixels, "stretch", size))
    return files


def references_of_pass(
    generation: ResolvedGeneration, masks: Sequence[Pixels | None], size: Size, frame: Frame | None
) -> tuple[Reference, ...]:
    """The references of one pass; arguments as of `controls_of_pass`, `masks` None for a picture without one."""
    return tuple(
        Reference(one.model, one.scale, one.start, one.end, None if mask is None else _masked(mask, size, frame))
        for one, mask in zip(generation.references, masks, strict=True)
    )


def _masked(mask: Pixels, size: Size, frame: Frame | None) -> Pixels:
    part = mask if frame is None else frame.part_of(mask)
    return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.NEAREST))
