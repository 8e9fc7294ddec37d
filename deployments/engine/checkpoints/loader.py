"""Loads checkpoints: UNet and VAE for a denoising stage, text encoders for the encoding stage.

Safetensors only, never a pickle, never remote code: classes are named here, and configurations are checked
(configs.py) before a library sees them. A weight that is missing, left over or of another shape is an error, where the
libraries would go on with random ones.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from deployments.engine.checkpoints import single_file
from deployments.engine.checkpoints.clip_tokenizer import load_tokenizer, tokenizer_files
from deployments.engine.checkpoints.configs import (
    Architecture,
    PipelineIndex,
    check_unet,
    check_vae,
    default_index,
    read_component,
    read_index,
    read_scheduler,
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
    TRANSFORMERS_STEM,
    Weights,
    fetch_from_hub,
    find_weights,
    hash_files,
    hash_tensors,
    is_hub_id,
    resolve_source,
)
from deployments.engine.checkpoints.single_file_header import SingleFileHeader, check_family, read_single_file_header
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.checkpoints.tensors import fill, read_weights
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import Family, TextEncoderComponent
from deployments.engine.families.registry import FAMILIES

logger = logging.getLogger(__name__)

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

    Attributes:
        model: in evaluation mode, without gradients.
        hash: over its weights, configuration, tokenizer, dtype and device: equal hashes encode equally.
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
        return ":".join((self.family.name, *(encoder.hash for encoder in self.encoders)))


@dataclass(frozen=True, slots=True)
class _Place:
    """The diffusers folder that describes a checkpoint, and its weights: the same folder, or a single file.

    Attributes:
        header: of a single file.
    """

    family: Family
    weights: Path
    configs: Path
    index: PipelineIndex
    header: SingleFileHeader | None = None

    @property
    def is_single_file(self) -> bool:
        return self.header is not None


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
    scheduler = spec.scheduler
    if place.header is not None:
        scheduler, doubts = scheduler.completed(place.header)
        for doubt in doubts:
            logger.warning("%s: %s", place.weights, doubt)
    scheduler_file = place.configs / "scheduler" / "scheduler_config.json"
    return DenoiserTensors(
        family=place.family,
        unet=ModelTensors(config, config_file, tensors, files[0]),
        vae=_read_vae_tensors(spec, place),
        scheduler_config=scheduler.over(
            read_scheduler(scheduler_file, place.family)
            if scheduler_file.is_file() or not place.is_single_file
            else dict(place.family.scheduler)
        ),
        force_zeros_for_empty_prompt=place.index.force_zeros_for_empty_prompt,
        hash=hash_files(files),
    )


def describe_denoiser(spec: CheckpointSpec) -> Architecture:
    """What `load_denoiser` would load, by its configurations alone: of a hub repository nothing else is fetched.

    Raises CheckpointError as `load_denoiser` does.
    """
    place = _locate(spec, ())
    _, unet = _read_unet(spec, place)
    _, vae_file = _find_vae(spec, place, ())
    return Architecture(unet, _read_vae(vae_file, place.family), len(place.family.time_ids))


def read_vae(weights: Weights | Path, config: Mapping[str, Any], config_file: Path) -> ModelTensors:
    """A VAE's tensors, still mapped to their files.

    Args:
        weights: of diffusers' layout; or a single file, of a VAE or of a checkpoint.
        config: its checked configuration.
        config_file: where that is from, for messages.

    Raises:
        CheckpointError: the file holds no VAE.
    """
    if isinstance(weights, Weights):
        file, tensors = weights.files[0], read_weights(weights)
    else:
        file, tensors = weights, dict(single_file.vae_tensors(weights, config))
    return ModelTensors(config, config_file, {_new_name(name): tensor for name, tensor in tensors.items()}, file)


def load_text_encoders(
    spec: CheckpointSpec,
    device: torch.device,
    dtype: torch.dtype,
    loaded: MutableMapping[str, TextEncoder] | None = None,
) -> TextEncoders:
    """Load the text encoders and tokenizers of a checkpoint, in the thread that owns the device.

    Args:
        spec: of the checkpoint.
        device: for the encoders.
        dtype: of the encoders.
        loaded: encoders by hash; one that is there is shared, a new one is added.

    Raises:
        CheckpointError: as `load_denoiser`.
    """
    shared: MutableMapping[str, TextEncoder] = {} if loaded is None else loaded
    components = FAMILIES[spec.family].text_encoders
    place = _locate(spec, tuple(component.folder for component in components))
    encoders = []
    for component in components:
        if component.folder not in place.index.components:
            raise CheckpointError(
                f"{place.weights / 'model_index.json'}: family {spec.family} needs a {component.folder}"
            )
        key = _hash_text_encoder(spec, place, component, f"{dtype} {device}")
        if key not in shared:
            shared[key] = _load_text_encoder(spec, place, component, key, device, dtype)
        encoders.append(shared[key])
    return TextEncoders(place.family, tuple(encoders))


def _locate(spec: CheckpointSpec, components: tuple[str, ...]) -> _Place:
    """Resolve a checkpoint's source; of a hub repository, what `components` need is fetched and no more."""
    patterns = [pattern for folder in components for pattern in _weight_patterns(folder, spec.variant)]
    path = resolve_source(spec.source, revision=spec.revision, hub_patterns=(*CONFIG_PATTERNS, *patterns))
    family = FAMILIES[spec.family]
    if path.is_dir():
        index = read_index(path, family)
        if spec.variant and is_hub_id(spec.source):
            path = _fetch_plain(spec, components, path)
        return _Place(family, path, path, index)
    header = read_single_file_header(path)
    if spec.config is None:
        check_family(header, spec.family)
        return _Place(family, path, family.published, default_index(family), header)
    configs = resolve_source(spec.config, hub_patterns=CONFIG_PATTERNS)
    if not configs.is_dir():
        raise CheckpointError(f"{configs}: expected a diffusers folder that describes {path}")
    return _Place(family, path, configs, default_index(family), header)


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
    if place.header is not None and place.configs == place.family.published:
        config["in_channels"] = place.header.in_channels  # of inpainting checkpoints nothing else differs
    check_unet(path, config, place.family, _read_text_configs(place))
    return path, config


def _find_vae(spec: CheckpointSpec, place: _Place, hub_patterns: Iterable[str]) -> tuple[Path, Path]:
    """Where the VAE's weights and its config.json lie.

    The checkpoint's own, or the other one that the spec asks for: a folder, a pipeline or a file of its own.
    """
    weights, configs = place.weights, place.configs / "vae"
    if spec.vae:
        weights = resolve_source(spec.vae, hub_patterns=(*CONFIG_PATTERNS, *hub_patterns))
        if weights.is_dir():
            configs = weights / "vae" if (weights / "vae").is_dir() else weights
    return weights, configs / "config.json"


def _read_vae(path: Path, family: Family) -> dict[str, Any]:
    """The VAE's config.json, checked."""
    config = read_component(path, "AutoencoderKL")
    check_vae(path, config, family)
    return config if family.upcasts_vae else config | {"force_upcast": False}


def _read_vae_tensors(spec: CheckpointSpec, place: _Place) -> ModelTensors:
    weights, path = _find_vae(spec, place, [p for folder in ("", "vae") for p in _weight_patterns(folder, None)])
    config = _read_vae(path, place.family)
    found = None if weights.is_file() else find_weights(path.parent, DIFFUSERS_STEM, None if spec.vae else spec.variant)
    return read_vae(weights if found is None else found, config, path)


def _load_text_encoder(
    spec: CheckpointSpec,
    place: _Place,
    component: TextEncoderComponent,
    key: str,
    device: torch.device,
    dtype: torch.dtype,
) -> TextEncoder:
    config_file = place.configs / component.folder / "config.json"
    config = read_component(config_file, component.class_name)
    if place.is_single_file:
        file = place.weights
        tensors = single_file.text_encoder_tensors(file, component)
    else:
        found = find_weights(place.weights / component.folder, TRANSFORMERS_STEM, spec.variant)
        file, tensors = found.files[0], read_weights(found)
    model = _empty_text_encoder(component.class_name, config, config_file)
    prefix = "text_model."
    if not any(name.startswith(prefix) for name in model.state_dict()):
        # transformers 5.6 took a level out of CLIPTextModel; published checkpoints still have it
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("embeddings.position_ids")}
    tokenizer = load_tokenizer(place.configs / component.tokenizer)
    return TextEncoder(tokenizer, fill(model, tensors, file, device, dtype), key)


def _hash_text_encoder(spec: CheckpointSpec, place: _Place, component: TextEncoderComponent, where: str) -> str:
    if place.is_single_file:
        weights = hash_tensors(place.weights, (component.prefix,))  # equal in files that share an encoder
    else:
        weights = hash_files(find_weights(place.weights / component.folder, TRANSFORMERS_STEM, spec.variant).files)
    tokenizer = tokenizer_files(place.configs / component.tokenizer)
    rest = hash_files([place.configs / component.folder / "config.json", *tokenizer])
    return hashlib.sha256(f"{weights} {rest} {where}".encode()).hexdigest()


def _read_text_configs(place: _Place) -> dict[str, dict[str, Any]]:
    """config.json of those text encoders that a checkpoint describes: a hub snapshot may have none."""
    return {
        encoder.folder: read_component(path, encoder.class_name)
        for encoder in place.family.text_encoders
        if (path := place.configs / encoder.folder / "config.json").is_file()
    }


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
