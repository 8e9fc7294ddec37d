"""IPTC's word for how an image came to be, which Content Credentials and XMP share."""

from serve_app.schemas.manifest import Manifest, UpscaleManifest
from serve_app.schemas.upscale_request import LANCZOS

_NEWSCODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"

GENERATED = _NEWSCODES + "trainedAlgorithmicMedia"
COMPOSITE = _NEWSCODES + "compositeWithTrainedAlgorithmicMedia"
ENHANCED = _NEWSCODES + "algorithmicallyEnhanced"


def source_type_of(manifest: Manifest | UpscaleManifest) -> str:
    """The URI: of an image in which another one shows through, COMPOSITE; of one enlarged without a model, ENHANCED."""
    if isinstance(manifest, UpscaleManifest):
        return ENHANCED if manifest.upscaler == LANCZOS else COMPOSITE
    return GENERATED if manifest.image is None else COMPOSITE
