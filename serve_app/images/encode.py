"""Encodes an image as a file with its manifest as JSON, and its infotext, AUTOMATIC1111's form that other tools read.

They are in a PNG's text chunks `darkroom` and `parameters`, or in a JPEG's or WebP's XMP packet and EXIF UserComment.
The XMP packet of each says, in IPTC's words, that the image was generated.
Encoding takes tens of milliseconds: call it in a thread.
"""

import html
import io
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from deployments.engine.types import Pixels
from serve_app.config.settings import OutputFormat
from serve_app.images.infotext import XMP_CHUNK, infotext_of, upscale_text
from serve_app.schemas.digital_source_type import source_type_of
from serve_app.schemas.manifest import Manifest, UpscaleManifest

MANIFEST_KEY = "darkroom"
"""Of the text in a PNG file that is the manifest."""

# Measured on 512² and 1024² photographic pictures: zlib level 1 takes 0.6 of the time of Pillow's default (6) for
# 11 % more bytes; 0 saves another third of the time for 60 % more; 9 costs as much as 6 or more and gains nothing.
_PNG_LEVEL = 1
# half the time of Pillow's default (4) for 1 to 4 % more bytes
_WEBP_METHOD = 2
# from this quality on, colours keep their full resolution
_JPEG_FULL_COLOUR = 90

# one segment of a JPEG holds 64 KiB; Pillow refuses more
_SEGMENT_BYTES = 65_000

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>"
    "</rdf:Description>{manifest}</rdf:RDF></x:xmpmeta><?xpacket end='r'?>"
)
_XMP_MANIFEST = (
    '<rdf:Description rdf:about="" xmlns:darkroom="urn:darkroom:manifest">'
    "<darkroom:manifest>{}</darkroom:manifest></rdf:Description>"
)


def encode_image(
    pixels: Pixels, output_format: OutputFormat, manifest: Manifest | UpscaleManifest, quality: int = 92
) -> bytes:
    """The image as a file with its infotext and its manifest.

    A text too long for its place in a JPEG (about 30,000 characters of prompt) is left out: the job's result has the
    manifest too.

    Args:
        pixels: (height, width, 3), uint8.
        output_format: of the file.
        manifest: of the image.
        quality: 1..100, of JPEG and WebP.
    """
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    if output_format == "png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("parameters", infotext_of(manifest))
        texts.add_text(MANIFEST_KEY, manifest.model_dump_json())
        texts.add_itxt(XMP_CHUNK, xmp_packet(source_type_of(manifest)))
        if isinstance(manifest, UpscaleManifest) and manifest.parameters:
            texts.add_text("postprocessing", upscale_text(manifest))
        image.save(file, "PNG", pnginfo=texts, compress_level=_PNG_LEVEL)
        return file.getvalue()
    exif, xmp = _exif(infotext_of(manifest)), xmp_packet(source_type_of(manifest), manifest).encode()
    extra: dict[str, Any] = {"xmp": xmp}
    if output_format == "webp" or len(exif) <= _SEGMENT_BYTES:
        extra["exif"] = exif
    if output_format == "jpeg" and len(xmp) > _SEGMENT_BYTES:
        extra["xmp"] = xmp_packet(source_type_of(manifest)).encode()
    if output_format == "jpeg":
        subsampling = 0 if quality >= _JPEG_FULL_COLOUR else 2
        image.save(file, "JPEG", quality=quality, subsampling=subsampling, **extra)
    else:
        image.save(file, "WEBP", quality=quality, method=_WEBP_METHOD, **extra)
    return file.getvalue()


def xmp_packet(source_type: str, manifest: Manifest | UpscaleManifest | None = None) -> str:
    """The XMP packet of a file: IPTC's URI of how the image came to be, and its manifest, if there is one."""
    text = "" if manifest is None else _XMP_MANIFEST.format(html.escape(manifest.model_dump_json(), quote=False))
    return _XMP.format(source_type=source_type, manifest=text)


def encode_preview(pixels: Pixels) -> bytes:
    """A preview of a few KB, as JPEG without metadata, of pixels (height, width, 3), uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def _exif(infotext: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + infotext.encode("utf-16-be")
    return exif.tobytes()
