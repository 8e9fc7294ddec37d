"""AUTOMATIC1111's infotext, the text in images that says how they were drawn: written from a manifest, and read.

    prompt, on one or more lines
    Negative prompt: on one or more lines
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, "a value, with a comma" is a JSON string

Reading is safe for any text: it takes linear time and raises nothing.
"""

import io
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict

from PIL import ExifTags, Image

from deployments.engine.parameters import NO_FREEU
from deployments.engine.prompts.syntax import named_loras, without_loras
from deployments.engine.samplers.registry import (
    DIFFUSERS_PREFIX,
    SAMPLERS,
    SCHEDULES,
    WEBUI_SAMPLERS,
    WEBUI_SCHEDULES,
    split,
)
from serve_app.schemas.generation_request import Combination, LoraRequest
from serve_app.schemas.manifest import ControlnetRecord, Manifest, UpscaleManifest

XMP_CHUNK = "XML:com.adobe.xmp"
"""Of the text in a PNG file that is its XMP packet."""

_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'([\w][\w \-/]{0,63}):\s*("(?:[^"\\]|\\.)*+"|[^,]*)(?:,|\Z)', re.ASCII | re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})", re.ASCII)

# pairs from which a last line counts as parameters: one or two may just be how a prompt ends
_LEAST_PAIRS = 3

_MAX_PIXELS = 64_000_000

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

# sd-webui-controlnet's, by our names
RESIZE_LABELS = {"stretch": "Just Resize", "crop": "Crop and Resize", "pad": "Resize and Fill"}

# where diffusers' samplers drew, which A1111 has no name for
OWN_SAMPLER = "Darkroom sampler"
OWN_HIRES_SAMPLER = "Darkroom hires sampler"

# of ADetailer's keys: what they begin with, and what those of its tabs end with
DETAILER, TABS = "ADetailer", ("", " 2nd", " 3rd", " 4th")

# its ways to combine masks, by our names
COMBINATIONS: Mapping[Combination, str] = {"each": "None", "all": "Merge", "others": "Merge and Invert"}

# A1111's, by our names; the original is no news
_MASKED_CONTENTS = {"blur": "fill", "noise": "latent noise", "nothing": "latent nothing"}

# of control characters only these two belong in a text
_CONTROLS = dict.fromkeys(code for code in range(32) if code not in (9, 10)) | {127: None}


def infotext_of(manifest: Manifest | UpscaleManifest) -> str:
    """The parameters in AUTOMATIC1111's form: prompt, negative prompt, one line of "Key: value" pairs.

    For an enlarged picture those of the picture, if it had any, else `upscale_text`.
    """
    if isinstance(manifest, UpscaleManifest):
        return manifest.parameters or upscale_text(manifest)
    strength = manifest.strength if manifest.hires is None else manifest.hires.strength
    prompt, prompt_2 = _tagged_prompts(manifest)
    pairs: dict[str, object] = {
        "Steps": manifest.steps,
        **_sampler_pairs(manifest.sampler, "Sampler", "Schedule type"),
        "CFG scale": f"{manifest.guidance_scale:g}",
        "Seed": manifest.seed,
        **_noise_pairs(manifest),
        **_freeu_pairs(manifest),
        "Size": f"{manifest.width}x{manifest.height}",
        "Tiling": True if manifest.tiling else None,
        "Model hash": manifest.model.hash[:10],
        "Model": manifest.model.name,
        "VAE hash": manifest.vae.hash[:10] if manifest.vae else None,
        "VAE": manifest.vae.name if manifest.vae else None,
        "Denoising strength": None if strength is None else f"{strength:g}",
        "Clip skip": manifest.clip_skip + 1 if manifest.clip_skip else None,  # A1111 counts from 1
        "CFG Rescale": f"{manifest.guidance_rescale:g}" if manifest.guidance_rescale else None,
        "Guidance start": f"{manifest.guidance_start:g}" if manifest.guidance_start > 0 else None,
        "Guidance end": f"{manifest.guidance_end:g}" if manifest.guidance_end < 1 else None,
        "Mask blur": manifest.image.blur if manifest.image and manifest.image.blur else None,
        "Inpaint area": "Only masked" if manifest.image and manifest.image.only_masked else None,
        "Masked content": _MASKED_CONTENTS.get(manifest.image.fill) if manifest.image else None,
        "Masked area padding": manifest.image.padding if manifest.image and manifest.image.only_masked else None,
        **_option_pairs(manifest),
        **_hires_pairs(manifest),
        **_detail_pairs(manifest),
        "Lora hashes": ", ".join(f"{lora.name}: {lora.hash[:12]}" for lora in manifest.loras) or None,
        "TI hashes": ", ".join(f"{one.name}: {one.hash[:12]}" for one in manifest.embeddings) or None,
        **{f"ControlNet {number}": _unit(one) for number, one in enumerate(manifest.controlnets)},
        "Prompt 2": _plain(prompt_2 or "") or None,
        "Negative prompt 2": _plain(manifest.negative_prompt_2 or "") or None,
        "Refiner": f"{manifest.refiner.name} [{manifest.refiner.hash[:10]}]" if manifest.refiner else None,
        "Refiner switch at": f"{manifest.refiner.switch_at:g}" if manifest.refiner else None,
        OWN_SAMPLER: _own_sampler(manifest.sampler),
        "Version": _version(manifest),
    }
    lines = [_plain(prompt)]
    if manifest.negative_prompt:
        lines.append(f"Negative prompt: {_plain(manifest.negative_prompt)}")
    return "\n".join([*lines, _joined(pairs)])


def upscale_text(manifest: UpscaleManifest) -> str:
    """What was done with an enlarged picture, as A1111's extras write it."""
    return _joined(_upscale_pairs(manifest))


def _hires_pairs(manifest: Manifest) -> dict[str, object]:
    hires = manifest.hires
    if hires is None:
        return {}
    scale = hires.width / manifest.width
    evenly = hires.height == scale * manifest.height
    pairs: dict[str, object] = {
        "Hires upscale": f"{scale:g}" if evenly else None,
        "Hires resize": None if evenly else f"{hires.width}x{hires.height}",
        "Hires steps": hires.taken_steps,
        "Hires upscaler": HIRES_LABELS.get(hires.upscaler, hires.upscaler),
        "Hires checkpoint": hires.model and f"{hires.model} [{(hires.model_hash or '')[:10]}]",
        "Hires prompt": hires.prompt,
        "Hires negative prompt": hires.negative_prompt,
    }
    if hires.sampler != manifest.sampler:
        named = _sampler_pairs(hires.sampler, "Hires sampler", "Hires schedule type")
        pairs |= named | {"Hires schedule type": named.get("Hires schedule type", "Uniform")}
        pairs[OWN_HIRES_SAMPLER] = _own_sampler(hires.sampler)
    return pairs


def _detail_pairs(manifest: Manifest) -> dict[str, object]:
    """As ADetailer writes its tabs; what a tab leaves to the image isn't said."""
    pairs: dict[str, object] = {}
    for number, detail in enumerate(manifest.details):
        own_size = (detail.width, detail.height) != (manifest.width, manifest.height)
        sampler: dict[str, object] = {}
        if detail.sampler != manifest.sampler:
            own = _own_sampler(detail.sampler)
            sampler = {"sampler": own} if own else _sampler_pairs(detail.sampler, "sampler", "scheduler")
        tab: dict[str, object] = {
            "model": detail.detector,
            "model classes": ", ".join(detail.classes) or None,
            "prompt": detail.prompt and _plain(detail.prompt),
            "negative prompt": detail.negative_prompt and _plain(detail.negative_prompt),
            "confidence": f"{detail.confidence:g}",
            "method to decide top k masks": "Area",
            "mask only top k": detail.max_count,
            "mask min ratio": f"{detail.min_area:g}" if detail.min_area else None,
            "mask max ratio": f"{detail.max_area:g}" if detail.max_area < 1 else None,
            "x offset": detail.offset_x or None,
            "y offset": -detail.offset_y or None,  # which grows upwards there
            "dilate erode": 2 * detail.dilation,  # of both sides
            "mask merge invert": None if detail.combine == "each" else COMBINATIONS[detail.combine],
            "mask blur": detail.blur,
            "denoising strength": f"{detail.strength:g}",
            "inpaint only masked": True,
            "inpaint padding": detail.padding,
            "use inpaint width height": own_size or None,
            "inpaint width": detail.width if own_size else None,
            "inpaint height": detail.height if own_size else None,
            "use separate steps": detail.steps != manifest.steps or None,
            "steps": detail.steps if detail.steps != manifest.steps else None,
            "use separate CFG scale": detail.guidance_scale != manifest.guidance_scale or None,
            "CFG scale": f"{detail.guidance_scale:g}" if detail.guidance_scale != manifest.guidance_scale else None,
            "use separate sampler": True if sampler else None,
            **sampler,
        }
        pairs |= {f"{DETAILER} {key}{TABS[number]}": value for key, value in tab.items()}
    return pairs


def _sampler_pairs(name: str, sampler_key: str, schedule_key: str) -> dict[str, object]:
    """A canonical sampler and its schedule by A1111's labels."""
    sampler, schedule = split(name)
    if sampler in WEBUI_SAMPLERS:
        known = WEBUI_SAMPLERS[sampler]
        if not known.schedules:
            return {sampler_key: known.label}
        label = "Uniform" if schedule is None else WEBUI_SCHEDULES[schedule].removesuffix(" XL")
        return {sampler_key: known.label, schedule_key: label}
    if sampler not in SAMPLERS:
        return {sampler_key: sampler}
    pairs: dict[str, object] = {sampler_key: SAMPLERS[sampler].label}
    return pairs if schedule is None else pairs | {schedule_key: SCHEDULES[schedule]}


def _own_sampler(name: str) -> str | None:
    """What says that diffusers' sampler of that label drew the picture, and not A1111's."""
    return f"{DIFFUSERS_PREFIX}{name}" if split(name)[0] in SAMPLERS else None


def _option_pairs(manifest: Manifest) -> dict[str, object]:
    """The numbers that a sampler was given, where they aren't its own."""
    sampler = WEBUI_SAMPLERS.get(split(manifest.sampler)[0])
    of_timesteps = sampler is not None and sampler.levels == "ddim"
    given = {
        "Eta DDIM" if of_timesteps else "Eta": (manifest.eta, None if sampler is None else sampler.eta),
        "Sigma churn": (manifest.s_churn, 0.0),
        "Sigma tmin": (manifest.s_tmin, 0.0),
        "Sigma tmax": (manifest.s_tmax, None),
        "Sigma noise": (manifest.s_noise, 1.0),
    }
    return {key: f"{value:g}" for key, (value, own) in given.items() if value is not None and value != own}


def _noise_pairs(manifest: Manifest) -> dict[str, object]:
    varied = manifest.variation_strength > 0
    return {
        "Variation seed": manifest.variation_seed if varied else None,
        "Variation seed strength": f"{manifest.variation_strength:g}" if varied else None,
        "Seed resize from": f"{manifest.noise_width}x{manifest.noise_height}" if manifest.noise_width else None,
        "ENSD": manifest.noise_seed_delta or None,
    }


def _freeu_pairs(manifest: Manifest) -> dict[str, object]:
    """As Forge writes them."""
    factors = asdict(manifest.freeu)
    if manifest.freeu == NO_FREEU:
        return {}
    return {"freeu_enabled": True, **{f"freeu_{name}": f"{factors[name]:g}" for name in ("b1", "b2", "s1", "s2")}}


def _tagged_prompts(manifest: Manifest) -> tuple[str, str | None]:
    """The prompts with the tags of all LoRAs, as other tools name them in no other way."""
    tags = [tag for text in (manifest.prompt, manifest.prompt_2 or "") if manifest.loras for tag in named_loras(text)]
    named: dict[str, tuple[float, float]] = {}
    for tag in tags:
        unet, text = named.get(tag.name, (0.0, 0.0))
        named[tag.name] = unet + tag.weight, text + tag.text_weight
    if {name: weights for name, weights in named.items() if any(weights)} == {
        lora.name: lora.weights for lora in manifest.loras
    }:
        return manifest.prompt, manifest.prompt_2
    all_tags = "".join(map(_tag, manifest.loras))
    prompt = f"{without_loras(manifest.prompt).strip()} {all_tags}".strip()
    return prompt, None if manifest.prompt_2 is None else without_loras(manifest.prompt_2)


def _tag(lora: LoraRequest) -> str:
    """As A1111's Lora extension reads it: the weight in the text encoders before the UNet's."""
    unet, text = lora.weights
    return f"<lora:{lora.name}:{text:.8g}{'' if text == unet else f':{unet:.8g}'}>"


def _upscale_pairs(manifest: UpscaleManifest) -> dict[str, object]:
    times = manifest.width / manifest.source_width
    evenly = manifest.height == times * manifest.source_height
    return {
        "Postprocess upscale by": f"{times:g}" if evenly else None,
        "Postprocess upscale to": None if evenly else f"{manifest.width}x{manifest.height}",
        "Postprocess upscaler": HIRES_LABELS.get(manifest.upscaler, manifest.upscaler),
        "Version": _version(manifest),
    }


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


def _plain(text: str) -> str:
    return text.translate(_CONTROLS)


def _quoted(value: object) -> str:
    """As in A1111, a value with a comma, a colon or a line break becomes a JSON string."""
    text = _plain(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _joined(pairs: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None)


def _version(manifest: Manifest | UpscaleManifest) -> str | None:
    return f"darkroom {manifest.versions['darkroom']}" if "darkroom" in manifest.versions else None


def parse_infotext(text: str) -> dict[str, str]:
    """The parameters by A1111's keys; always with "Prompt" and "Negative prompt", and a size also split in two."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _LEAST_PAIRS:
        lines, pairs = [*lines, last], []
    start = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(_NEGATIVE)
    found = {"Prompt": "\n".join(lines[:start]).strip(), "Negative prompt": negative.strip()}
    for key, value in pairs:
        found[key] = _unquoted(value.strip())
        size = _SIZE.fullmatch(value.strip())
        if size is not None:
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
    return found


def texts_of(data: bytes) -> tuple[str, dict[str, str]] | None:
    """The infotext in an image file, "" if there is none, and its other texts but XMP; None if the file can't be read.

    PNG, JPEG and WebP; the pixels aren't decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            info = {str(key): value for key, value in image.info.items() if key != XMP_CHUNK}
            texts = {key: value for key, value in info.items() if isinstance(value, str)}
            comment, own_comment = None, image.info.get("comment")
            # a PNG's EXIF may stand behind its pixels: to look for it there, Pillow would unpack them all
            if image.format != "PNG" or "exif" in image.info:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):  # what Pillow raises for broken files
        return None
    infotext = texts.pop("parameters", None)
    if infotext is None and isinstance(comment, bytes):
        infotext = _comment(comment)
    if not infotext and isinstance(own_comment, bytes):  # of a JPEG, beside EXIF
        infotext = own_comment.decode("utf-8", errors="replace")
    return infotext or "", texts


def _comment(comment: bytes) -> str:
    """EXIF's UserComment: eight bytes say how the rest is written; where they don't, all is text, as A1111 takes it."""
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        return text.decode("utf-16-be", errors="replace")
    if code.startswith(b"JIS\0"):
        return ""
    return (text if code in (b"ASCII\0\0\0", bytes(8)) else comment).decode("utf-8", errors="replace")


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
