"""Checkpoints' configurations: which classes they may name, which keys they may not have, which family they are.

A config.json is data from strangers, and libraries have run code because of one (CVE-2026-4372): what is read here is
checked against lists of what is known before any library sees it. Knows nothing of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.engine.checkpoints.files import read_json
from deployments.engine.checkpoints.spec import Family
from deployments.engine.errors import CheckpointError
from deployments.engine.samplers.registry import SAMPLERS

PIPELINES: Mapping[Family, str] = {
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}
# of checkpoints whose UNet takes a mask and what is kept of an image as further channels
_INPAINTING_PIPELINES: Mapping[Family, str] = {
    "sd15": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLInpaintPipeline",
}
# of checkpoints whose UNet was distilled with the guidance as a condition
_DISTILLED_PIPELINES: Mapping[Family, str] = {"sd15": "LatentConsistencyModelPipeline"}
# the text encoders of a family, in the order in which their states are joined: (folder, class)
TEXT_ENCODERS: Mapping[Family, tuple[tuple[str, str], ...]] = {
    "sd15": (("text_encoder", "CLIPTextModel"),),
    "sdxl": (("text_encoder", "CLIPTextModel"), ("text_encoder_2", "CLIPTextModelWithProjection")),
    "sdxl-refiner": (("text_encoder_2", "CLIPTextModelWithProjection"),),
}
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
_OPTIONS = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
# keys that make a library import or fetch something
_CODE_KEYS = frozenset(
    {
        "auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "quantization_config",
        "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PipelineIndex:
    """What the engine needs of a model_index.json.

    components: names of those that the checkpoint has.
    """

    components: frozenset[str]
    force_zeros_for_empty_prompt: bool
    requires_aesthetics_score: bool


def default_index(family: Family) -> PipelineIndex:
    """What the published checkpoint of the family says; single files carry no model_index.json."""
    encoders = [folder for folder, _ in TEXT_ENCODERS[family]]
    return PipelineIndex(
        components=frozenset(["unet", "vae", "scheduler", *encoders]),
        force_zeros_for_empty_prompt=family == "sdxl",
        requires_aesthetics_score=family == "sdxl-refiner",
    )


def default_scheduler(family: Family) -> dict[str, Any]:
    """The published checkpoint's scheduler/scheduler_config.json."""
    betas = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
    if family == "sd15":
        return {"_class_name": "PNDMScheduler", **betas, "set_alpha_to_one": False, "skip_prk_steps": True}
    return {
        "_class_name": "EulerDiscreteScheduler",
        **betas,
        "interpolation_type": "linear",
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    }


def read_index(folder: Path, family: Family) -> PipelineIndex:
    """The folder's model_index.json. Raises CheckpointError if it isn't of the family, or names unknown classes."""
    path = folder / "model_index.json"
    index = _without_code(path, read_json(path))
    expected, found = PIPELINES[family], index.get("_class_name")
    others = (pipelines.get(family, expected) for pipelines in (_INPAINTING_PIPELINES, _DISTILLED_PIPELINES))
    if found not in (expected, *others):
        raise CheckpointError(f"{path}: expected _class_name {expected} for family {family}, found {found!r}")
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
    defaults = default_index(family)
    options = {name: index.get(name, getattr(defaults, name)) for name in _OPTIONS}
    return PipelineIndex(frozenset(components), **{name: bool(value) for name, value in options.items()})


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

    SD1.5 checkpoints of the first years say steps_offset 0 or clip_sample true; diffusers' SD pipelines put both right
    when they are built (its SDXL pipelines don't), and so does this.
    """
    config = _without_code(path, read_json(path))
    if str(config.get("_class_name")) not in SCHEDULERS:
        raise CheckpointError(f"{path}: expected one of {_list(SCHEDULERS)}, found {config.get('_class_name')!r}")
    if family == "sd15":
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

    text_configs: folder -> config.json, of the text encoders that the checkpoint has; may lack some or all.
    """

    def expect(key: str, expected: object) -> None:
        if config.get(key) != expected:
            raise CheckpointError(f"{path}: expected {key} {expected!r} for family {family}, found {config.get(key)!r}")

    if config.get("in_channels") != 9 or family not in _INPAINTING_PIPELINES:
        expect("in_channels", 4)  # 8 would be InstructPix2Pix
    expect("addition_embed_type", None if family == "sd15" else "text_time")
    folders = [folder for folder, _ in TEXT_ENCODERS[family]]
    if all(folder in text_configs for folder in folders):
        expect("cross_attention_dim", sum(_integer(path, text_configs[folder], "hidden_size") for folder in folders))
    if family != "sd15":
        ids = 5 if family == "sdxl-refiner" else 6
        time_ids = ids * _integer(path, config, "addition_time_embed_dim")
        second = text_configs.get("text_encoder_2")
        if second is not None:
            pooled = _integer(path, second, "projection_dim")
            expect("projection_class_embeddings_input_dim", pooled + time_ids)


def check_vae(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the autoencoder isn't one of SD's: four channels, an eighth of the pixels."""
    channels, levels = config.get("latent_channels"), config.get("block_out_channels")
    if channels != 4 or not isinstance(levels, list) or len(levels) != 4:
        raise CheckpointError(f"{path}: expected 4 latent channels and 4 levels, found {channels!r} and {levels!r}")


def _integer(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise CheckpointError(f"{path}: it, or a text encoder's beside it, has no {key}: {value!r}")
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
