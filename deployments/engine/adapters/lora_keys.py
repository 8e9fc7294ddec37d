"""The keys of LoRA files: which layer of which model a tensor belongs to, and what it is of that layer's update.

kohya's scripts, LyCORIS, OneTrainer, ComfyUI, peft, and diffusers since 2023 each write their own. Torch-free, because
the front looks at them too.
"""

import re
from collections.abc import Collection
from typing import Literal, NamedTuple, get_args

from deployments.engine.errors import CheckpointError

Part = Literal["unet", "text_encoder", "text_encoder_2"]
Kind = Literal[
    # a product of two matrices or three, differences, numbers
    "down", "up", "mid", "weight", "bias", "alpha", "scalar",
    # LoHa
    "hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2",
    # LoKr
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    # DoRA, LyCORIS' and peft's; (IA)3
    "dora_scale", "magnitude", "factors", "on_input",
]  # fmt: skip

# beginnings of keys
_PREFIXES: dict[str, Part] = {
    # kohya's, and OneTrainer's, which keeps the dots
    **{f"lora_unet{sign}": "unet" for sign in "_."},
    **{f"lora_te{sign}": "text_encoder" for sign in "_."},
    **{f"lora_te1{sign}": "text_encoder" for sign in "_."},
    **{f"lora_te2{sign}": "text_encoder_2" for sign in "_."},
    # diffusers'
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    # ComfyUI's
    "diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
PARTS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")
# kohya's form, peft's, and two older ones of diffusers
_MATRIX = re.compile(
    r"(?P<layer>.+?)(?:\.(?:lora_|lora\.|lora_linear_layer\.)|_lora\.)(?P<matrix>down|up|mid|A|B)(?:\.default)?\.weight"
)
_MATRICES: dict[str, Kind] = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid"}
_MAGNITUDE = re.compile(r"(?P<layer>.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
# LyCORIS names the differences of norms otherwise than those of other layers
_DIFFERENCES: dict[str, Kind] = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
_OTHERS: dict[str, Kind] = {
    **_DIFFERENCES,
    **{kind: kind for kind in get_args(Kind) if re.match(r"hada|lokr|dora|on_input|alpha|scalar", kind)},
}
_IA3 = ".on_input"  # beside a tensor that is just called weight
_EMBEDDING = re.compile(r"bundle_emb\.(?P<name>.+)\.(?P<kind>clip_l|clip_g|emb_params|string_to_param\.\*)")
_BUNDLES = ("bundle_emb.", "emb_params")
_READ = (
    "LoRA and LoCon (lora_up, lora_down, lora_mid, alpha, scalar), LoHa (hada_*), LoKr (lokr_*), DoRA (dora_scale, "
    "lora_magnitude_vector), (IA)3 (weight and on_input) and differences (diff, diff_b, w_norm, b_norm)"
)


class LayerKey(NamedTuple):
    """A tensor of a layer's update; `layer` is its name with underscores for dots."""

    part: Part
    layer: str
    kind: Kind


class EmbeddingKey(NamedTuple):
    """A tensor of a textual inversion that comes in the file; `kind` as in such files."""

    name: str
    kind: str


def read_keys(keys: Collection[str]) -> dict[str, LayerKey | EmbeddingKey | None]:
    """What a file's keys say; None for one of no known kind."""
    known = frozenset(keys)
    return {key: _read_key(key, known) for key in keys}


def _read_key(key: str, beside: frozenset[str]) -> LayerKey | EmbeddingKey | None:
    embedding = _EMBEDDING.fullmatch(key)
    if embedding is not None:
        return EmbeddingKey(embedding["name"], embedding["kind"])
    part, bare = _part(key)
    matrix = _MATRIX.fullmatch(bare)
    if matrix is not None:
        return LayerKey(part, _spelled(part, matrix["layer"]), _MATRICES[matrix["matrix"]])
    magnitude = _MAGNITUDE.fullmatch(bare)
    if magnitude is not None:
        return LayerKey(part, _spelled(part, magnitude["layer"]), "magnitude")
    layer, _, last = bare.rpartition(".")
    kind = _OTHERS.get(last)
    if last == "weight" and key.removesuffix(".weight") + _IA3 in beside:
        kind = "factors"
    return None if kind is None or not layer else LayerKey(part, _spelled(part, layer), kind)


def check_keys(keys: Collection[str]) -> None:
    """Raise CheckpointError, naming the first, if a key is of no known kind; parts of embeddings may be."""
    for key, meaning in read_keys(keys).items():
        if meaning is None and not key.startswith(_BUNDLES):
            raise CheckpointError(f"{shown(key)} is unknown: {_READ} are read")


def shown(key: str) -> str:
    """A key as messages have it, whatever is in it."""
    return ascii(key)[1:-1][:128]


def _part(key: str) -> tuple[Part, str]:
    """The part of the model that a key belongs to, and the key without its beginning."""
    for prefix, part in _PREFIXES.items():
        if key.startswith(prefix):
            return part, key.removeprefix(prefix).removeprefix("base_model.model.")
    return "unet", key.removeprefix("base_model.model.")


def _spelled(part: Part, layer: str) -> str:
    """A layer's name as unet_layers and text_layers spell it; old diffusers files name attention's processors."""
    layer = layer.replace(".processor.", ".")
    layer = layer.removesuffix("to_out") + "to_out.0" if layer.endswith("to_out") else layer
    if part != "unet":
        if not layer.startswith(("text_model", "text_projection")):
            layer = f"text_model.{layer}"
        layer = re.sub(r"\.to_(q|k|v)$", r".\1_proj", layer)
        layer = re.sub(r"\.to_out\.0$", ".out_proj", layer)
    return layer.replace(".", "_")
