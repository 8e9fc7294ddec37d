"""What an image file says about itself: the manifest that can replay it, and the parameters as people know them.

An encoded image carries both its infotext (the form of AUTOMATIC1111, which other tools read) and the manifest as
JSON: PNG in the text chunks `parameters` and `darkroom`; JPEG and WebP in EXIF's UserComment and in an XMP packet.
There is no time and no job id in them, so that the same request gives the same file.

Knows nothing of jobs, stores or HTTP. Encoding takes tens of milliseconds: call it in a thread.
"""

import html
import io
import json
import re
import struct
from typing import Any, Literal

from PIL import ExifTags, Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deployments.engine.prompts.syntax import named_loras, without_loras
from deployments.engine.samplers.registry import SAMPLERS, SCHEDULES, split
from deployments.engine.types import Pixels

OutputFormat = Literal["png", "jpeg", "webp"]

# Measured on 512² and 1024² photographic pictures: zlib level 1 takes 0.6 of the time of Pillow's default (6) for
# 11 % more bytes; 0 saves another third of the time for 60 % more; 9 costs as much as 6 or more and gains nothing.
_PNG_LEVEL = 1
# half the time of Pillow's default (4) for 1 to 4 % more bytes
_WEBP_METHOD = 2
# from this quality on, colours keep their full resolution
_JPEG_FULL_COLOUR = 90

# one segment of a JPEG holds 64 KiB; Pillow refuses more
_SEGMENT_BYTES = 65_000

_MAX_READ_PIXELS = 64_000_000

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:darkroom="urn:darkroom:manifest">'
    "<darkroom:manifest>{}</darkroom:manifest>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_XMP_MANIFEST = re.compile(rb"<darkroom:manifest>([^<]*)</darkroom:manifest>")

# our upscalers by A1111's labels
HIRES_LABELS = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}

# of control characters only these two belong in a text
_CONTROLS = dict.fromkeys(code for code in range(32) if code not in (9, 10)) | {127: None}


RESIZE_LABELS = {"stretch": "Just Resize", "crop": "Crop and Resize", "pad": "Resize and Fill"}
"""sd-webui-controlnet's, by our names."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckpointRecord(_Record):
    """A checkpoint that took part. hash: sha256 over its UNet weight files."""

    name: str
    hash: str


class RefinerRecord(CheckpointRecord):
    """The refiner that took over. switch_at: the fraction of the schedule at which it did."""

    switch_at: float
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5


class LoraRecord(_Record):
    """A LoRA that the model wore. hash: sha256 over its file."""

    name: str
    weight: float
    hash: str


class ControlnetRecord(_Record):
    """A ControlNet that steered the image. hash: sha256 over its weight files. sha256: of the picture's file.

    preprocessor, low, high, fit, scale, start, end: as in the request's `controlnets`.
    """

    name: str
    hash: str
    sha256: str
    preprocessor: str
    low: int
    high: int
    fit: str
    scale: float
    start: float
    end: float


class ImageRecord(_Record):
    """The picture that the image began with. sha256, mask_sha256: of the files that the request brought, hex.

    blur, invert, only_masked, padding: as in the request's `inpaint`. outpaint: left, top, right, bottom, in pixels.
    """

    sha256: str
    mask_sha256: str | None = None
    blur: int = 0
    invert: bool = False
    only_masked: bool = False
    padding: int = 0
    outpaint: tuple[int, int, int, int] | None = None


class HiresRecord(_Record):
    """The second pass. width, height: of the image. upscaler: how the first pass's came to that size.

    upscaler_hash: sha256 over its file where it is a model. strength: how much of the schedule ran. steps: of that
    whole schedule. sampler: canonical name.
    """

    width: int
    height: int
    upscaler: str
    upscaler_hash: str | None = None
    strength: float
    steps: int
    sampler: str


class SafetyRecord(_Record):
    """What the safety layers made of the image. score: of the unsafe label, 0..1; None where none was asked."""

    mode: str
    action: str
    flagged: bool = False
    score: float | None = None
    flagged_by: tuple[str, ...] = ()


class Manifest(_Record):
    """Everything it takes to draw the image again, resolved: no defaults are left to apply.

    versions: of the software by name ("darkroom", "torch", "diffusers", …).
    prompt_2, negative_prompt_2: for SDXL's second text encoder; None: the same.
    model, refiner: the checkpoints. seed: this image's own. steps: the sampler's, before any cut.
    width, height: at which it was drawn, the first time where there is a second pass (hires).
    sampler: canonical name. clip_skip: as in TextEncodingRequest.
    guidance_rescale, guidance_start, guidance_end: as in DenoiseRequest.
    loras: what the model wore, whether the request or a prompt named them; those of weight 0 apart.
    controlnets: what steered it.
    image, strength: what it began with and how far it went from there, None without.
    device, dtype: where it was drawn ("cpu", "cuda"; "float32", …).
    reproducibility: "bucket:<rows>" where the batch was pinned, else "best-effort".
    safety: what the safety layers made of it.
    """

    manifest_version: Literal[1] = 1
    versions: dict[str, str]
    model: CheckpointRecord
    refiner: RefinerRecord | None = None
    prompt: str
    negative_prompt: str = ""
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    seed: int = Field(ge=0, lt=2**63)
    steps: int
    guidance_scale: float
    width: int
    height: int
    sampler: str
    guidance_rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    clip_skip: int = 0
    loras: tuple[LoraRecord, ...] = ()
    controlnets: tuple[ControlnetRecord, ...] = ()
    image: ImageRecord | None = None
    strength: float | None = None
    hires: HiresRecord | None = None
    device: str
    dtype: str
    reproducibility: str
    safety: SafetyRecord

    @field_validator("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a character (a lone surrogate), which no file can") from None
        return text

    def infotext(self) -> str:
        """The parameters in AUTOMATIC1111's form: prompt, negative prompt, one line of "Key: value" pairs."""
        sampler, schedule = split(self.sampler)
        strength = self.strength if self.hires is None else self.hires.strength
        prompt, prompt_2 = self._tagged_prompts()
        pairs: dict[str, object] = {
            "Steps": self.steps,
            "Sampler": SAMPLERS[sampler].label if sampler in SAMPLERS else sampler,
            "Schedule type": None if schedule is None else SCHEDULES[schedule],
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.model.hash[:10],
            "Model": self.model.name,
            "Denoising strength": None if strength is None else f"{strength:g}",
            "Clip skip": self.clip_skip + 1 if self.clip_skip else None,  # A1111 counts from 1
            "CFG Rescale": f"{self.guidance_rescale:g}" if self.guidance_rescale else None,
            "Guidance start": f"{self.guidance_start:g}" if self.guidance_start > 0 else None,
            "Guidance end": f"{self.guidance_end:g}" if self.guidance_end < 1 else None,
            "Mask blur": self.image.blur if self.image and self.image.blur else None,
            "Inpaint area": "Only masked" if self.image and self.image.only_masked else None,
            "Masked area padding": self.image.padding if self.image and self.image.only_masked else None,
            **self._hires_pairs(),
            "Lora hashes": ", ".join(f"{lora.name}: {lora.hash[:12]}" for lora in self.loras) or None,
            **{f"ControlNet {number}": _unit(one) for number, one in enumerate(self.controlnets)},
            "Prompt 2": _plain(prompt_2 or "") or None,
            "Negative prompt 2": _plain(self.negative_prompt_2 or "") or None,
            "Refiner": f"{self.refiner.name} [{self.refiner.hash[:10]}]" if self.refiner else None,
            "Refiner switch at": f"{self.refiner.switch_at:g}" if self.refiner else None,
            "Version": f"darkroom {self.versions['darkroom']}" if "darkroom" in self.versions else None,
        }
        lines = [_plain(prompt)]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {_plain(self.negative_prompt)}")
        lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
        return "\n".join(lines)

    def _hires_pairs(self) -> dict[str, object]:
        """As A1111 writes them."""
        if self.hires is None:
            return {}
        hires = self.hires
        sampler, schedule = split(hires.sampler)
        scale = hires.width / self.width
        evenly = hires.height == scale * self.height
        pairs: dict[str, object] = {
            "Hires upscale": f"{scale:g}" if evenly else None,
            "Hires resize": None if evenly else f"{hires.width}x{hires.height}",
            "Hires steps": int(hires.steps * hires.strength),
            "Hires upscaler": HIRES_LABELS.get(hires.upscaler, hires.upscaler),
        }
        if hires.sampler != self.sampler:
            pairs["Hires sampler"] = SAMPLERS[sampler].label if sampler in SAMPLERS else sampler
            pairs["Hires schedule type"] = "Uniform" if schedule is None else SCHEDULES[schedule]
        return pairs

    def _tagged_prompts(self) -> tuple[str, str | None]:
        """The prompts with the tags of all LoRAs: other tools know no other way to name them."""
        tags = [tag for text in (self.prompt, self.prompt_2 or "") if self.loras for tag in named_loras(text)]
        named: dict[str, float] = {}
        for tag in tags:
            named[tag.name] = named.get(tag.name, 0.0) + tag.weight
        if {name: weight for name, weight in named.items() if weight} == {one.name: one.weight for one in self.loras}:
            return self.prompt, self.prompt_2
        all_tags = "".join(f"<lora:{one.name}:{one.weight:.8g}>" for one in self.loras)
        prompt = f"{without_loras(self.prompt).strip()} {all_tags}".strip()
        return prompt, None if self.prompt_2 is None else without_loras(self.prompt_2)


class UpscaleManifest(_Record):
    """How a picture came to be larger than it was.

    upscaler: "lanczos" or a model's name. hash: sha256 over the model's file, None of lanczos.
    sha256: of the file that came, hex. source_width, source_height: of the picture in it. width, height: of the image.
    versions, device, dtype, safety: as in Manifest.
    """

    manifest_version: Literal[1] = 1
    operation: Literal["upscale"] = "upscale"
    versions: dict[str, str]
    upscaler: str
    hash: str | None = None
    sha256: str
    source_width: int
    source_height: int
    width: int
    height: int
    device: str
    dtype: str
    safety: SafetyRecord

    def infotext(self) -> str:
        """The parameters as AUTOMATIC1111's extras write them."""
        times = self.width / self.source_width
        evenly = self.height == times * self.source_height
        pairs: dict[str, object] = {
            "Postprocess upscale by": f"{times:g}" if evenly else None,
            "Postprocess upscale to": None if evenly else f"{self.width}x{self.height}",
            "Postprocess upscaler": HIRES_LABELS.get(self.upscaler, self.upscaler),
            "Version": f"darkroom {self.versions['darkroom']}" if "darkroom" in self.versions else None,
        }
        return ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None)


def _unit(record: ControlnetRecord) -> str:
    """As sd-webui-controlnet writes its units."""
    pairs = {
        "Module": record.preprocessor,
        "Model": f"{record.name} [{record.hash[:8]}]",
        "Weight": f"{record.scale:g}",
        "Resize Mode": RESIZE_LABELS[record.fit],
        "Guidance Start": f"{record.start:g}",
        "Guidance End": f"{record.end:g}",
    }
    return ", ".join(f"{key}: {value}" for key, value in pairs.items())


def encode_image(
    pixels: Pixels, output_format: OutputFormat, manifest: Manifest | UpscaleManifest, quality: int = 92
) -> bytes:
    """The image as a file that carries its parameters and its manifest.

    pixels: uint8 (height, width, 3). quality: 1..100, of JPEG and WebP. A text too long for its place in a JPEG
    (about 30,000 characters of prompt) is left out of the file: the picture goes first, and the job's result
    holds the manifest too.
    """
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    if output_format == "png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("parameters", manifest.infotext())
        texts.add_text("darkroom", manifest.model_dump_json())
        image.save(file, "PNG", pnginfo=texts, compress_level=_PNG_LEVEL)
        return file.getvalue()
    exif, xmp = _exif(manifest.infotext()), _xmp(manifest.model_dump_json())
    extra: dict[str, Any] = {}
    if output_format == "webp" or len(exif) <= _SEGMENT_BYTES:
        extra["exif"] = exif
    if output_format == "webp" or len(xmp) <= _SEGMENT_BYTES:
        extra["xmp"] = xmp
    if output_format == "jpeg":
        subsampling = 0 if quality >= _JPEG_FULL_COLOUR else 2
        image.save(file, "JPEG", quality=quality, subsampling=subsampling, **extra)
    else:
        image.save(file, "WEBP", quality=quality, method=_WEBP_METHOD, **extra)
    return file.getvalue()


def read_manifest(data: bytes) -> Manifest | None:
    """The manifest in an image file, None where there is none to be read. The pixels aren't decoded.

    Safe on files from anywhere: PNG, JPEG and WebP only, sizes bounded, nothing raised for what is in them.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > _MAX_READ_PIXELS:
                return None
            text = image.info.get("darkroom") if image.format == "PNG" else _from_xmp(image.info.get("xmp"))
        # it outlives the version that wrote it: a field that this one doesn't have is passed over
        return None if text is None else Manifest.model_validate_json(text, extra="ignore")
    except ValidationError:
        return None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):  # what Pillow raises for broken files
        return None


def encode_preview(pixels: Pixels) -> bytes:
    """A preview of a few KB, as JPEG, without metadata. pixels: uint8 (height, width, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def _plain(text: str) -> str:
    return text.translate(_CONTROLS)


def _quoted(value: object) -> str:
    """As A1111 does it: a value with a comma, a colon or a line's end in it becomes a JSON string."""
    text = _plain(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _exif(infotext: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + infotext.encode("utf-16-be")
    return exif.tobytes()


def _xmp(manifest_json: str) -> bytes:
    return _XMP.format(html.escape(manifest_json, quote=False)).encode()


def _from_xmp(packet: object) -> str | None:
    match = _XMP_MANIFEST.search(packet) if isinstance(packet, bytes) else None
    return None if match is None else html.unescape(match[1].decode())
