"""What the files that settings name say of themselves, against the settings. Reads headers, no weights; no torch.

A mistake is a problem. What the service does otherwise than somebody may think is a warning: a file that is skipped, a
checkpoint that says it was trained for something else.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.checkpoints.configs import check_unet, read_component, read_index
from deployments.engine.checkpoints.files import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    find_weights,
    is_hub_id,
    is_safetensors,
    resolve_source,
)
from deployments.engine.checkpoints.single_file_header import check_family, read_single_file_header
from deployments.engine.conditioning.controlnet_files import ControlnetFolder
from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.errors import CheckpointError
from deployments.engine.families.registry import FAMILIES
from deployments.engine.prompts.textual_inversion import EmbeddingFolder
from deployments.engine.samplers.registry import SAMPLERS, entry
from deployments.engine.upscaling.folder import UpscalerFolder
from deployments.engine.vae.folder import VaeFolder
from serve_app.config.models import ModelSettings
from serve_app.config.settings import Settings

Finding = tuple[tuple[str, ...], str]  # the key in the settings, and what is to be said of it

_DEMO = "package:demo_models/"


def missing_sources(settings: Settings) -> Iterator[Finding]:
    """Files and folders of models that aren't here, or that are never loaded; hub ids aren't looked up."""
    for name, model in settings.models.items():
        for key in ("source", "vae", "config"):
            source = getattr(model, key)
            if source is None or is_hub_id(source):
                continue
            try:
                resolve_source(source)
            except CheckpointError as error:
                yield ("models", name, key), str(error)


def wrong_files(settings: Settings) -> Iterator[Finding]:
    """Single files that don't fit their model's settings; those that aren't here are looked for elsewhere."""
    for name, model in settings.models.items():
        if not _is_file(model):
            continue
        try:
            header = read_single_file_header(Path(model.source).expanduser())
            if model.config is None:
                check_family(header, model.family)
        except (CheckpointError, OSError) as error:
            yield ("models", name, "source"), str(error)
            continue
        scheduler, _ = model.scheduler.completed(header)
        sampler = model.defaults.sampler
        if scheduler.rescale_betas_zero_snr and not entry(sampler).zero_snr:
            known = ", ".join(name for name, one in SAMPLERS.items() if one.zero_snr)
            yield (
                ("models", name, "defaults", "sampler"),
                f"{sampler} doesn't support zero terminal SNR, which {model.source} was trained with (its tensor "
                f"ztsnr); these do: {known}",
            )


def incomplete_folders(settings: Settings) -> Iterator[Finding]:
    """Diffusers' folders of other families, or without weights for a component; only those that are here."""
    for name, model in settings.models.items():
        if is_hub_id(model.source) or _is_file(model):
            continue
        try:
            folder = resolve_source(model.source)
        except CheckpointError:
            continue  # a problem already
        try:
            _check_folder(folder, model)
        except CheckpointError as error:
            yield ("models", name, "source"), str(error)


def _check_folder(folder: Path, model: ModelSettings) -> None:
    """Raise CheckpointError unless a folder is of a model's family, and has weights for each of its components."""
    family = FAMILIES[model.family]
    read_index(folder, family)
    config = folder / "unet" / "config.json"
    encoders: dict[str, dict[str, Any]] = {
        encoder.folder: read_component(path, encoder.class_name)
        for encoder in family.text_encoders
        if (path := folder / encoder.folder / "config.json").is_file()
    }
    check_unet(config, read_component(config, "UNet2DConditionModel"), family, encoders)
    find_weights(folder / "unet", DIFFUSERS_STEM, model.variant)
    if model.vae is None:
        find_weights(folder / "vae", DIFFUSERS_STEM, model.variant)
    if not family.refines:  # its texts are encoded by the model that it refines
        for encoder in family.text_encoders:
            find_weights(folder / encoder.folder, TRANSFORMERS_STEM, model.variant)


def doubtful_files(settings: Settings) -> Iterator[Finding]:
    """Contradictions of single files and settings, and files of folders that are skipped."""
    for name, model in settings.models.items():
        if _is_file(model):
            try:
                _, doubts = model.scheduler.completed(read_single_file_header(Path(model.source).expanduser()))
            except (CheckpointError, OSError):
                continue  # a problem already
            for doubt in doubts:
                yield ("models", name, "source"), f"{model.source}: {doubt}"
    for keys, folder_class, folder in (
        (("loras", "folder"), LoraFolder, settings.loras.folder),
        (("controlnets", "folder"), ControlnetFolder, settings.controlnets.folder),
        (("ip_adapters", "folder"), IpAdapterFolder, settings.ip_adapters.folder),
        (("vaes", "folder"), VaeFolder, settings.vaes.folder),
        (("upscalers", "folder"), UpscalerFolder, settings.upscalers.folder),
        (("detectors", "folder"), DetectorFolder, settings.detectors.folder),
        (("stages", "text_encoder", "embeddings"), EmbeddingFolder, settings.stages.text_encoder.embeddings),
    ):
        try:
            skipped = folder_class(folder).contents().skipped
        except CheckpointError:
            continue  # a problem already
        for reason in skipped.values():
            yield keys, f"{reason}: skipped"


def unjudged_models(settings: Settings) -> list[str]:
    """The models that aren't the demo's, if nothing was said of who judges their images."""
    safety = settings.safety
    if safety.mode == "off" or safety.safety_checker is not None or "classifier" in safety.model_fields_set:
        return []
    return [name for name, model in settings.models.items() if not model.source.startswith(_DEMO)]


def _is_file(model: ModelSettings) -> bool:
    path = Path(model.source).expanduser()
    return is_safetensors(path) and path.is_file()
