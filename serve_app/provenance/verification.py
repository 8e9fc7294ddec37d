"""Says of an image file what it says of itself, and whether that is to be believed.

It takes tens of milliseconds: call it in a thread.
"""

import re

from pydantic import BaseModel, Field

from serve_app.images.decode import content_type_of
from serve_app.images.infotext import texts_of
from serve_app.provenance.reading import Credentials, read_credentials

_SOURCE_TYPE = re.compile(
    rb"""Iptc4xmpExt:DigitalSourceType(?:>|=["']|\s+rdf:resource=["'])\s*"""
    rb"""(http://cv\.iptc\.org/newscodes/digitalsourcetype/[A-Za-z]{1,64})"""
)


class Verification(BaseModel):
    """What an image file says of how it was made."""

    credentials: Credentials | None = Field(description="Signed Content Credentials (C2PA); null where it has none.")
    digital_source_type: str | None = Field(description="IPTC's, of the file's XMP. Anybody can write it.")
    parameters: str | None = Field(description="The infotext of Darkroom or AUTOMATIC1111. Anybody can write it.")


def verify(data: bytes, anchors: str = "") -> Verification:
    """Read a file; its pixels aren't decoded.

    Args:
        data: PNG, JPEG or WebP.
        anchors: certificates of the authorities that are trusted, PEM.

    Raises:
        InvalidRequest: it is another kind of file.
    """
    content_type = content_type_of("image", data)
    source_type = _SOURCE_TYPE.search(data)
    texts = texts_of(data)
    return Verification(
        credentials=read_credentials(data, content_type, anchors),
        digital_source_type=None if source_type is None else source_type[1].decode(),
        parameters=None if texts is None else texts[0] or None,
    )
