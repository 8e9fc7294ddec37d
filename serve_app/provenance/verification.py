"""Says of an image file what it says of itself, and whether that is to be believed.

It takes up to a second: call it in a thread.
"""

import re
from collections.abc import Callable

from pydantic import BaseModel, Field

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Pixels
from serve_app.images.decode import check_readable, content_type_of, read_file
from serve_app.images.infotext import texts_of
from serve_app.provenance.reading import Credentials, read_credentials
from serve_app.provenance.watermark_payload import WatermarkPayload

ReadWatermark = Callable[[Pixels], WatermarkPayload | None]

_SOURCE_TYPE = re.compile(
    rb"""Iptc4xmpExt:DigitalSourceType(?:>|=["']|\s+rdf:resource=["'])\s*"""
    rb"""(http://cv\.iptc\.org/newscodes/digitalsourcetype/[A-Za-z]{1,64})"""
)


class WatermarkView(BaseModel):
    """The watermark in an image's pixels."""

    service_id: int = Field(description="Of the service that drew it, by its settings.")
    job_end: str = Field(description="The last 8 digits of the id of the job that drew it.")


class Verification(BaseModel):
    """What an image file says of how it was made."""

    credentials: Credentials | None = Field(description="Signed Content Credentials (C2PA); null where it has none.")
    digital_source_type: str | None = Field(description="IPTC's, of the file's XMP. Anybody can write it.")
    parameters: str | None = Field(description="The infotext of Darkroom or AUTOMATIC1111. Anybody can write it.")
    watermark: WatermarkView | None = Field(description="null where none was found. Who knows how can write one.")


def verify(data: bytes, read_watermark: ReadWatermark, max_pixels: int, anchors: str = "") -> Verification:
    """Read a file.

    Args:
        data: PNG, JPEG or WebP.
        read_watermark: from pixels (height, width, 3), uint8.
        max_pixels: of a picture that is decoded for its watermark.
        anchors: certificates of the authorities that are trusted, PEM.

    Raises:
        InvalidRequest: it is another kind of file, or no picture at all for being broken.
    """
    content_type = content_type_of("image", data)
    check_readable("image", data)
    source_type = _SOURCE_TYPE.search(data)
    texts = texts_of(data)
    return Verification(
        credentials=read_credentials(data, content_type, anchors),
        digital_source_type=None if source_type is None else source_type[1].decode(),
        parameters=None if texts is None else texts[0] or None,
        watermark=_watermark(data, read_watermark, max_pixels),
    )


def _watermark(data: bytes, read_watermark: ReadWatermark, max_pixels: int) -> WatermarkView | None:
    try:
        picture = read_file("image", data, max_pixels)
    except InvalidRequest:  # its pixels are broken or too many, which says nothing of the rest of the file
        return None
    payload = read_watermark(picture.pixels)
    return None if payload is None else WatermarkView(service_id=payload.service_id, job_end=payload.job_end)
