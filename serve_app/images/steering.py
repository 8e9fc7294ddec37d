"""All pictures that steer a generation besides the one that it begins with: of ControlNets, references and regions.

They are read from the request, stored beside the job, and brought to each pass; others hand them on as one thing.
The work takes tens of milliseconds: call it in a thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
from deployments.engine.types import Pixels, ReferencePicture
from serve_app.images.control_images import controls_of_pass, kept_controls, read_controls
from serve_app.images.decode import Source, SourceImage
from serve_app.images.inpainting import Frame
from serve_app.images.reference_images import ReferenceSource, kept_references, read_references, references_of_pass
from serve_app.images.region_masks import kept_regions, read_regions, regions_of_pass
from serve_app.images.stored_pictures import Size, read_kept, stored_size
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.resolved import ResolvedGeneration


@dataclass(frozen=True, slots=True)
class SteeringSources:
    """The decoded pictures of a request, in its order; None for a region without a mask."""

    controls: Sequence[SourceImage] = ()
    references: Sequence[ReferenceSource] = ()
    regions: Sequence[SourceImage | None] = ()

    @classmethod
    def read(
        cls, request: GenerationRequest, source: Source | None, ip_adapters: IpAdapterFolder, max_pixels: int
    ) -> "SteeringSources":
        """Decode them.

        Args:
            request: of a client.
            source: the picture that it begins with, which stands for those that it leaves out.
            ip_adapters: that references may name.
            max_pixels: of each picture.

        Raises:
            InvalidRequest: one is missing or can't be read.
            IpAdapterRefused: a reference's IP-Adapter doesn't exist or can't be read.
        """
        return cls(
            read_controls(request, source, max_pixels),
            read_references(request, source, ip_adapters, max_pixels),
            read_regions(request, max_pixels),
        )

    def stored(self, request: GenerationRequest, generation: ResolvedGeneration, source: Source | None) -> list[bytes]:
        """The files that are stored beside the job, as many as the generation's `steering_pictures`.

        Raises InvalidRequest for a region's mask that is black.
        """
        size = stored_size(generation, None if source is None else (source.image.width, source.image.height))
        controls = kept_controls(request, generation, self.controls, size)
        return [*controls, *kept_references(request, self.references, size), *kept_regions(self.regions, size)]


NO_STEERING = SteeringSources()


@dataclass(frozen=True, slots=True)
class SteeringPictures:
    """The pictures of a generation, as they were stored, in its order.

    Attributes:
        masks: of the references; None where one has none.
        regions: masks of the regions, likewise.
    """

    controls: Sequence[Pixels] = ()
    references: Sequence[Pixels] = ()
    masks: Sequence[Pixels | None] = ()
    regions: Sequence[Pixels | None] = ()

    @classmethod
    def read(cls, generation: ResolvedGeneration, files: Sequence[bytes]) -> "SteeringPictures":
        """From what `SteeringSources.stored` returned."""
        pictures: Iterator[Pixels] = map(read_kept, files)
        controls = [next(pictures) for _ in generation.controlnets]
        references, masks = list[Pixels](), list[Pixels | None]()
        for reference in generation.references:
            references.append(next(pictures))
            masks.append(None if reference.mask_sha256 is None else next(pictures))
        regions = [None if region.mask_sha256 is None else next(pictures) for region in generation.regions]
        return cls(controls, references, masks, regions)

    def to_encode(self, generation: ResolvedGeneration) -> tuple[ReferencePicture, ...]:
        """The pictures that an image encoder sees."""
        return tuple(
            ReferencePicture(picture, reference.patches, reference.channels)
            for reference, picture in zip(generation.references, self.references, strict=True)
        )

    def of_pass(
        self, generation: ResolvedGeneration, size: Size, frame: Frame | None, *, refines: bool = False
    ) -> dict[str, Any]:
        """The fields of one pass's DenoiseRequest.

        Args:
            generation: that they steer.
            size: of the pass.
            frame: the part of the picture that is drawn; None for text to image.
            refines: whether it is a refiner's, which ControlNets and references don't steer.
        """
        regions = {"regions": regions_of_pass(generation, self.regions, size, frame)}
        if refines:
            return regions
        return regions | {
            "controls": controls_of_pass(generation, self.controls, size, frame),
            "references": references_of_pass(generation, self.masks, size, frame),
        }


NO_PICTURES = SteeringPictures()
