"""Loads checkpoints: UNet and VAE for a denoising stage, text encoders for the encoding stage.

Safetensors only, never a pickle, never remote code: classes are named here, and configurations are checked
(checkpoint_configs.py) before a library sees them. A weight that is missing, left over or of another shape is an
error, where the libraries would go on with random ones. Knows nothing of lanes, prompts or residency.
"""

import hashlib
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from deployments.engine.checkpoints import single_file
from deployments.engine.checkpoints.configs import (
    TEXT_ENCODERS,
    PipelineIndex,
    check_unet,
    check_vae,
    default_index,
    default_scheduler,
    read_component,
    read_index,
    read_scheduler,
    read_tokenizer,
)
from deployments.engine.checkpoints.denoiser_weights import (
    DenoiserTensors,
    DenoiserWeights,
    ModelTensors,
    PlaceFor,
    placed,
)
from deployments.engine.checkpoints.files import (
    DIFFUSERS_STEM,
    fetch_from_hub,
    find_weights,
    hash_files,
    is_hub_id,
    resolve_source,
)
from deployments.engine.checkpoints.spec import CheckpointSpec, Family
from deployments.engine.checkpoints.tensors import fill, read_weights
from deployments.engine.errors import CheckpointError
from deployments.engine.memory.footprint import Architecture

TRANSFORMERS_STEM = "model"
# where a single file's architecture and tokenizers are described, unless the spec says
PUBLISHED_CONFIGS: Mapping[Family, str] = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
CONFIG_PATTERNS = ("*.json", "*.txt")
# all that a CLIP text encoder's architecture depends on; nothing else of its config.json reaches transformers
_CLIP_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# autoencoders saved by diffusers before 0.18 name their attention's layers so
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """One CLIP text encoder with its tokenizer.

    model: in evaluation mode, without gradients.
    hash: over its weights, configuration, tokenizer, type and device: equal hashes encode equally.
    """

    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection
    hash: str


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoders:
    """A checkpoint's text encoders, in the order in which their states are joined."""

    family: Family
    encoders: tuple[TextEncoder, ...]

    @property
    def hash(self) -> str:
        """Equal for checkpoints that encode every text equally."""
        return ":".join((self.family, *(encoder.hash for encoder in self.encoders)))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a checkpoint lies. configs: a diffusers folder that describes it; weights: the same, or a single file."""

    weights: Path
    configs: Path
    index: PipelineIndex

    @property
    def is_single_file(self) -> bool:
        return self.weights != self.configs


def load_denoiser(spec: CheckpointSpec, device: torch.device, dtype: torch.dtype) -> DenoiserWeights:
    """UNet and VAE of a checkpoint. Runs in the thread that owns the device. Raises CheckpointError."""
    return placed(read_denoiser(spec), PlaceFor(device=device, dtype=dtype, vae_dtype=dtype))


def read_denoiser(spec: CheckpointSpec) -> DenoiserTensors:
    """UNet and VAE of a checkpoint, still mapped to their files.

    Raises CheckpointError, naming the file and what was expected, if the checkpoint is missing, partial, of another
    family, or unsafe to load.
    """
    place = _locate(spec, ("unet",) if spec.vae else ("unet", "vae"))
    config_file, config = _read_unet(spec, place)
    if place.is_single_file:
        files: tuple[Path, ...] = (place.weights,)
        tensors = single_file.unet_tensors(place.weights, config)
    else:
        weights = find_weights(place.weights / "unet", DIFFUSERS_STEM, spec.variant)
        if weights.variant != spec.variant:
            raise CheckpointError(f"{weights.files[0]}: expected weights of variant {spec.variant!r}")
        files = weights.files
        tensors = read_weights(weights)
    scheduler_file = place.configs / "scheduler" / "scheduler_config.json"
    return DenoiserTensors(
        family=spec.family,
        unet=ModelTensors(config, config_file, tensors, files[0]),
        vae=_read_vae_tensors(spec, place),
        scheduler_config=spec.scheduler.over(
            read_scheduler(scheduler_file, spec.family)
            if scheduler_file.is_file() or not place.is_single_file
            else default_scheduler(spec.family)
        ),
        force_zeros_for_empty_prompt=place.index.force_zeros_for_empty_prompt,
        requires_aesthetics_score=place.index.requires_aesthetics_score,
        hash=hash_files(files),
    )


def describe_denoiser(spec: CheckpointSpec) -> Architecture:
    """What `load_denoiser` would load, by its configurations alone: of a hub repository nothing else is fetched.

    Raises CheckpointError as `load_denoiser` does.
    """
    place = _locate(spec, ())
    _, unet = _read_unet(spec, place)
    _, vae_file = _find_vae(spec, place, ())
    time_ids = 0 if spec.family == "sd15" else 5 if place.index.requires_aesthetics_score else 6
    return Architecture(unet, _read_vae(spec, vae_file), time_ids)


def load_text_encoders(
    spec: CheckpointSpec,
    device: torch.device,
    dtype: torch.dtype,
    loaded: MutableMapping[str, TextEncoder] | None = None,
) -> TextEncoders:
    """Text encoders and tokenizers of a checkpoint. Runs in the thread that owns the device.

    loaded: encoders by hash; one that is there already is shared, a new one is put in.
    Raises CheckpointError as `load_denoiser` does.
    """
    shared: MutableMapping[str, TextEncoder] = {} if loaded is None else loaded
    parts = TEXT_ENCODERS[spec.family]
    place = _locate(spec, tuple(folder for folder, _ in parts))
    encoders = []
    for folder, class_name in parts:
        if folder not in place.index.components:
            raise CheckpointError(f"{place.weights / 'model_index.json'}: family {spec.family} needs a {folder}")
        key = _hash_text_encoder(spec, place, folder, f"{dtype} {device}")
        if key not in shared:
            shared[key] = _load_text_encoder(spec, place, folder, class_name, key, device, dtype)
        encoders.append(shared[key])
    return TextEncoders(spec.family, tuple(encoders))


def _locate(spec: CheckpointSpec, components: tuple[str, ...]) -> _Place:
    """Resolve a checkpoint's source; of a hub repository, what `components` need is fetched and no more."""
    patterns = [pattern for folder in components for pattern in _weight_patterns(folder, spec.variant)]
    path = resolve_source(spec.source, revision=spec.revision, hub_patterns=(*CONFIG_PATTERNS, *patterns))
    if path.is_dir():
        index = read_index(path, spec.family)
        if spec.variant and is_hub_id(spec.source):
            path = _fetch_plain(spec, components, path)
        return _Place(path, path, index)
    configs = resolve_source(spec.config or PUBLISHED_CONFIGS[spec.family], hub_patterns=CONFIG_PATTERNS)
    if not configs.is_dir():
        raise CheckpointError(f"{configs}: expected a diffusers folder that describes {path}")
    return _Place(path, configs, default_index(spec.family))


def _weight_patterns(folder: str, variant: str | None) -> tuple[str, str]:
    """The names of a component's weights on the hub: one file, or shards."""
    stem = TRANSFORMERS_STEM if folder.startswith("text_encoder") else DIFFUSERS_STEM
    path = f"{folder}/{stem}" if folder else stem
    infix = f".{variant}" if variant else ""
    return f"{path}{infix}.safetensors", f"{path}{infix}-*-of-*.safetensors"


def _fetch_plain(spec: CheckpointSpec, components: Iterable[str], snapshot: Path) -> Path:
    """Fetch the plain weights of those components that the hub has no such variant of, as diffusers does."""
    lacking = [folder for folder in components if not any((snapshot / folder).glob(f"*.{spec.variant}*.safetensors"))]
    patterns = [pattern for folder in lacking for pattern in _weight_patterns(folder, None)]
    return fetch_from_hub(spec.source, spec.revision, patterns) if patterns else snapshot


def _read_unet(spec: CheckpointSpec, place: _Place) -> tuple[Path, dict[str, Any]]:
    """The UNet's config.json, checked."""
    path = place.configs / "unet" / "config.json"
    config = read_component(path, "UNet2DConditionModel")
    check_unet(path, config, spec.family, _read_text_configs(place.configs, spec.family))
    return path, config


def _find_vae(spec: CheckpointSpec, place: _Place, hub_patterns: Iterable[str]) -> tuple[Path, Path]:
    """Where the VAE's weights and its config.json lie: the checkpoint's own, or the other one that the spec asks for, a
    folder, pipeline or file of its own.
    """
    weights, configs = place.weights, place.configs / "vae"
    if spec.vae:
        weights = resolve_source(spec.vae, hub_patterns=(*CONFIG_PATTERNS, *hub_patterns))
        if weights.is_dir():
            configs = weights / "vae" if (weights / "vae").is_dir() else weights
    return weights, configs / "config.json"


def _read_vae(spec: CheckpointSpec, path: Path) -> dict[str, Any]:
    """The VAE's config.json, checked."""
    config = read_component(path, "AutoencoderKL")
    check_vae(path, config)
    if spec.family == "sd15":
        # meant for SDXL, but AutoencoderKL's default: diffusers' SD1.5 pipelines don't look at it, and decode in 16 bit
        config = config | {"force_upcast": False}
    return config


def _read_vae_tensors(spec: CheckpointSpec, place: _Place) -> ModelTensors:
    weights, path = _find_vae(spec, place, [p for folder in ("", "vae") for p in _weight_patterns(folder, None)])
    config = _read_vae(spec, path)
    if weights.is_file():
        file, tensors = weights, single_file.vae_tensors(weights, config)
    else:
        found = find_weights(path.parent, DIFFUSERS_STEM, None if spec.vae else spec.variant)
        file, tensors = found.files[0], read_weights(found)
    return ModelTensors(config, path, {_new_name(name): tensor for name, tensor in tensors.items()}, file)


def _load_text_encoder(
    spec: CheckpointSpec,
    place: _Place,
    folder: str,
    class_name: str,
    key: str,
    device: torch.device,
    dtype: torch.dtype,
) -> TextEncoder:
    config = read_component(place.configs / folder / "config.json", class_name)
    if place.is_single_file:
        file = place.weights
        tensors = single_file.text_encoder_tensors(file, spec.family, folder)
    else:
        found = find_weights(place.weights / folder, TRANSFORMERS_STEM, spec.variant)
        file, tensors = found.files[0], read_weights(found)
    model = _empty_text_encoder(class_name, config, place.configs / folder / "config.json")
    prefix = "text_model."
    if not any(name.startswith(prefix) for name in model.state_dict()):
        # transformers 5.6 took a level out of CLIPTextModel; published checkpoints still have it
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("embeddings.position_ids")}
    return TextEncoder(
        _load_tokenizer(_tokenizer_folder(place, folder)), fill(model, tensors, file, device, dtype), key
    )


def _hash_text_encoder(spec: CheckpointSpec, place: _Place, folder: str, where: str) -> str:
    if place.is_single_file:
        weights = single_file.hash_text_encoder(place.weights, spec.family, folder)
    else:
        weights = hash_files(find_weights(place.weights / folder, TRANSFORMERS_STEM, spec.variant).files)
    tokenizer = sorted(path for path in _tokenizer_folder(place, folder).glob("*") if path.is_file())
    rest = hash_files([place.configs / folder / "config.json", *tokenizer])
    return hashlib.sha256(f"{weights} {rest} {where}".encode()).hexdigest()


def _tokenizer_folder(place: _Place, text_encoder: str) -> Path:
    return place.configs / text_encoder.replace("text_encoder", "tokenizer")


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    read_tokenizer(folder / "tokenizer_config.json")
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise CheckpointError(f"{folder}: expected vocab.json and merges.txt, or tokenizer.json")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: not a tokenizer that can be read: {error}") from error


def _read_text_configs(configs: Path, family: Family) -> dict[str, dict[str, Any]]:
    """config.json of those text encoders that a checkpoint describes: a hub snapshot may have none."""
    paths = {folder: (configs / folder / "config.json", class_name) for folder, class_name in TEXT_ENCODERS[family]}
    return {folder: read_component(path, name) for folder, (path, name) in paths.items() if path.is_file()}


def _empty_text_encoder(class_name: str, config: Mapping[str, Any], path: Path) -> Any:
    """A model without weights, as its checked configuration describes it."""
    model_class: Any = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    try:
        with init_empty_weights():
            return model_class[class_name](CLIPTextConfig(**{key: config[key] for key in _CLIP_KEYS if key in config}))
    except Exception as error:
        # whatever values a stranger's file may have, and whatever they make the library trip over
        raise CheckpointError(f"{path}: describes no {class_name}: {error}") from error


def _new_name(name: str) -> str:
    if ".attentions." in name:
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name
