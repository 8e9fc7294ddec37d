"""Checkpoints' configurations: which classes they may name, which keys they may not have, which family they are.

A config.json is data from strangers, and libraries have run code because of one (CVE-2026-4372): what is read here is
checked against lists of what is known before any library sees it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.engine.checkpoints.files import read_json
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import Family
from deployments.engine.samplers.registry import SAMPLERS

SCHEDULERS = frozenset(sampler.scheduler for sampler in SAMPLERS.values())
# what model_index.json may name: component -> (libraries, classes)
_COMPONENTS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "unet": (frozenset({"diffusers"}), frozenset({"UNet2DConditionModel"})),
    "vae": (frozenset({"diffusers"}), frozenset({"AutoencoderKL"})),
    "scheduler": (frozenset({"diffusers"}), SCHEDULERS),
    "text_encoder": (frozenset({"transformers"}), frozenset({"CLIPTextModel"})),
    "text_encoder_2": (frozenset({"transformers"}), frozenset({"CLIPTextModelWithProjection"})),
    "tokenizer": (frozenset({"transformers"}), frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "tokenizer_2": (frozenset({"transformers"}), frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "feature_extractor": (
        frozenset({"transformers"}),
        frozenset({"CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor"}),
    ),
    "safety_checker": (frozenset({"stable_diffusion"}), frozenset({"StableDiffusionSafetyChecker"})),
    "image_encoder": (frozenset({"transformers"}), frozenset({"CLIPVisionModelWithProjection"})),
}
# keys that make a library import or fetch something
_CODE_KEYS = frozenset(
    {
        "auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "quantization_config",
        "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Architecture:
    """The checked configurations of a checkpoint's UNet and VAE; `time_ids`: how many the UNet takes, 0 for none."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    time_ids: int


@dataclass(frozen=True, slots=True)
class PipelineIndex:
    """The entries of a model_index.json that the engine uses; `components`: names of those that it has."""

    components: frozenset[str]
    force_zeros_for_empty_prompt: bool


def default_index(family: Family) -> PipelineIndex:
    """The index of a single file, which has none: the family's published values."""
    encoders = [encoder.folder for encoder in family.text_encoders]
    return PipelineIndex(frozenset(["unet", "vae", "scheduler", *encoders]), family.zeroes_empty_negative)


def read_index(folder: Path, family: Family) -> PipelineIndex:
    """The folder's model_index.json. Raises CheckpointError if it isn't of the family, or names unknown classes."""
    path = folder / "model_index.json"
    index = _without_code(path, read_json(path))
    pipeline = index.get("_class_name")
    if pipeline not in family.pipelines:
        raise CheckpointError(
            f"{path}: expected _class_name {family.pipeline} for family {family.name}, found {pipeline!r}"
        )
    components = set()
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list):
            continue  # notes and options; only lists name classes
        if name not in _COMPONENTS or len(entry) != 2:
            raise CheckpointError(f"{path}: unknown entry {name!r}: {entry!r}")
        library, class_name = (None if part is None else str(part) for part in entry)
        if library is None and class_name is None:
            continue
        libraries, classes = _COMPONENTS[name]
        if library not in libraries or class_name not in classes:
            raise CheckpointError(
                f"{path}: {name} is {entry!r}, expected {_list(libraries)} and one of {_list(classes)}"
            )
        components.add(name)
    zeroes = index.get("force_zeros_for_empty_prompt", family.zeroes_empty_negative)
    return PipelineIndex(frozenset(components), bool(zeroes))


def read_component(path: Path, class_name: str) -> dict[str, Any]:
    """A component's config.json, of diffusers ("_class_name") or transformers ("architectures").

    Raises CheckpointError if it is of another class, or has a key that makes a library run code.
    """
    config = _without_code(path, read_json(path))
    found = config.get("_class_name", config.get("architectures"))
    if found not in (class_name, [class_name]):
        raise CheckpointError(f"{path}: expected a {class_name}, found {found!r}")
    return config


def read_tokenizer(path: Path) -> dict[str, Any]:
    """A tokenizer_config.json. Raises CheckpointError if it isn't CLIP's, or could make a library run code."""
    config = _without_code(path, read_json(path))
    found = config.get("tokenizer_class", "CLIPTokenizer")
    if found not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise CheckpointError(f"{path}: expected a CLIPTokenizer, found {found!r}")
    return config


def read_scheduler(path: Path, family: Family) -> dict[str, Any]:
    """A scheduler_config.json, class name included. Raises CheckpointError if the scheduler isn't a known one.

    Where diffusers' pipelines put steps_offset and clip_sample right when they are built, so does this.
    """
    config = _without_code(path, read_json(path))
    if str(config.get("_class_name")) not in SCHEDULERS:
        raise CheckpointError(f"{path}: expected one of {_list(SCHEDULERS)}, found {config.get('_class_name')!r}")
    if family.corrects_scheduler:
        config["steps_offset"] = 1
        if "clip_sample" in config:
            config["clip_sample"] = False
    return config


def read_preprocessor(path: Path) -> dict[str, Any]:
    """A preprocessor_config.json. Raises CheckpointError if it is missing, or could make a library run code."""
    return _without_code(path, read_json(path))


def check_unet(
    path: Path, config: Mapping[str, Any], family: Family, text_configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise CheckpointError if the UNet isn't one of the family, or doesn't fit the text encoders beside it.

    Args:
        path: of the UNet's config.json, for messages.
        config: its content.
        family: of the checkpoint.
        text_configs: the config.json of each text encoder by its folder, as far as the checkpoint has them.
    """

    def expect(key: str, expected: object) -> None:
        if config.get(key) != expected:
            raise CheckpointError(
                f"{path}: expected {key} {expected!r} for family {family.name}, found {config.get(key)!r}"
            )

    latents = family.latent_channels
    # a mask and the image under it beside the latents; twice the latents would be InstructPix2Pix
    if family.inpainting_pipeline is None or config.get("in_channels") != 2 * latents + 1:
        expect("in_channels", latents)
    expect("addition_embed_type", family.addition_embed_type)
    if family.linear_projections:
        expect("use_linear_projection", True)
    folders = [encoder.folder for encoder in family.text_encoders]
    if all(folder in text_configs for folder in folders):
        expect("cross_attention_dim", sum(_integer(path, text_configs[folder], "hidden_size") for folder in folders))
    if family.time_ids:
        time_ids = len(family.time_ids) * _integer(path, config, "addition_time_embed_dim")
        pooling = text_configs.get(folders[-1])
        if pooling is not None:
            pooled = _integer(path, pooling, "projection_dim")
            expect("projection_class_embeddings_input_dim", pooled + time_ids)


def check_vae(path: Path, config: Mapping[str, Any], family: Family) -> None:
    """Raise CheckpointError if the autoencoder's latents aren't the family's; each level halves the sides."""
    channels, levels = config.get("latent_channels"), config.get("block_out_channels")
    wanted, depth = family.latent_channels, family.latent_scale.bit_length()
    if channels != wanted or not isinstance(levels, list) or len(levels) != depth:
        raise CheckpointError(
            f"{path}: expected {wanted} latent channels and {depth} levels, found {channels!r} and {levels!r}"
        )


def _integer(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise CheckpointError(
            f"{path}: expected a whole number as {key}, here or in a text encoder's config.json, found {value!r}"
        )
    return value


def _without_code(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`config`, once no key at any depth makes a library import or fetch something."""
    pending: list[Any] = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            bad = sorted(key for key in _CODE_KEYS if value.get(key) is not None)
            if bad:
                raise CheckpointError(f"{path}: has {_list(bad)}, which can run or fetch code; remove it")
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return config


def _list(names: object) -> str:
    return ", ".join(sorted(names)) if isinstance(names, list | frozenset) else str(names)
