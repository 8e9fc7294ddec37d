"""Pictures that came with a request, as ingredients of the images' credentials: kept beside the job until it is drawn.

A picture that has credentials of its own brings them; another one is named by its hash alone. The call takes tens of
milliseconds: make it in a thread.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import c2pa

from serve_app.images.decode import content_type_of, decoded
from serve_app.provenance.content import INSTANCE, SOFTWARE, ingredient_label
from serve_app.provenance.library import writing_context
from serve_app.schemas.generation_request import ControlnetRequest, GenerationRequest, ReferenceRequest
from serve_app.schemas.upscale_request import UpscaleRequest

_BEGAN_WITH = "parentOf"
_STEERS = "inputTo"

# of one archive; a picture with larger credentials is named by its hash
_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class UsedPicture:
    """A picture of a request.

    Attributes:
        field: of the request.
        text: the file as base64 or a data URL.
        began_with: whether the images begin with it, rather than being steered by it.
    """

    field: str
    text: str
    began_with: bool


def used_pictures(request: GenerationRequest | UpscaleRequest) -> tuple[UsedPicture, ...]:
    """The pictures of a request that its images are made of; what they begin with is the first."""
    began = () if request.image is None else (UsedPicture("image", request.image, began_with=True),)
    if isinstance(request, UpscaleRequest):
        return began
    steering: dict[str, ControlnetRequest | ReferenceRequest] = {
        **{f"controlnets.{index}": control for index, control in enumerate(request.controlnets)},
        **{f"references.{index}": reference for index, reference in enumerate(request.references)},
    }
    steer = [
        UsedPicture(f"{field}.image", picture.image, began_with=False)
        for field, picture in steering.items()
        if picture.image is not None and picture.scale
    ]
    return (*began, *steer)


def archives_of(pictures: Sequence[UsedPicture]) -> list[bytes]:
    """An archive of each, a few KB, that a signer takes. Raises InvalidRequest for what is no base64."""
    return [_archived(ingredient_label(index), picture) for index, picture in enumerate(pictures)]


def _archived(label: str, picture: UsedPicture) -> bytes:
    data = decoded(picture.field, picture.text)
    content_type = content_type_of(picture.field, data)
    ingredient = {
        "label": label,
        "title": "the picture that the image begins with" if picture.began_with else "a picture that steers the image",
        "relationship": _BEGAN_WITH if picture.began_with else _STEERS,
        "format": content_type,
        "instance_id": INSTANCE + hashlib.sha256(data).hexdigest(),
    }
    try:
        with c2pa.Builder({"claim_generator_info": [SOFTWARE]}, _CONTEXT) as builder:
            builder.add_ingredient(ingredient, content_type, io.BytesIO(data))
            archive = _archive(builder, label)
            if len(archive) <= _MOST_BYTES:
                return archive
    except c2pa.C2paError:
        pass  # its credentials can't be read: they are as good as none
    with c2pa.Builder({"claim_generator_info": [SOFTWARE], "ingredients": [ingredient]}, _CONTEXT) as builder:
        return _archive(builder, label)


def _archive(builder: c2pa.Builder, label: str) -> bytes:
    archive = io.BytesIO()
    builder.write_ingredient_archive(label, archive)
    return archive.getvalue()


_CONTEXT = writing_context()
