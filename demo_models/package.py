"""Assembles the working folder's trained parts into the packaged checkpoints, as fp16 safetensors.

A checkpoint still in training can be packaged too: the newest averaged weights are taken.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from diffusers import (
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from torch import nn

from demo_models import (
    CONTROLNETS,
    DETECTORS,
    IMAGE_ENCODER,
    IP_ADAPTERS,
    LORAS,
    NAMES,
    controlnet,
    detector,
    ip_adapter,
    lora,
    path,
)
from demo_models.card import (
    RECORD,
    write_card,
    write_controlnet_card,
    write_detector_card,
    write_ip_adapter_card,
    write_lora_card,
)
from demo_models.diffusion import BETAS, TIMESTEPS
from demo_models.nsfw import new_processor
from demo_models.workshop import (
    CONTROLNET_COURSES,
    Workshop,
    autoencoder,
    continued,
    encoders,
    finest,
    steps_taken,
    tokenizers,
    trained_classifier,
    trained_controlnet,
    trained_detector,
    trained_image_encoder,
    trained_ip_adapter,
    trained_lora,
    trained_unet,
)
from deployments.engine.detection.folder import metadata_of

LOSSLESS = ("vocab.json", "merges.txt")
"""Tokenizer files that stock readers want and that `save_pretrained` leaves out."""


def training_name(shop: Workshop, name: str) -> str:
    """The training run behind a packaged checkpoint."""
    short = name.removeprefix("demo-")
    return "refiner" if short == "sdxl-refiner" else finest(shop, short)


def package(shop: Workshop, name: str, target: Path | None = None) -> Path:
    """Write one checkpoint folder, with a model card that waits for its scores."""
    folder = target or path(name)
    fresh = folder.with_name(f"{name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    if name == "demo-nsfw":
        trained_classifier(shop, training_name(shop, name)).half().save_pretrained(fresh)
        new_processor().save_pretrained(fresh)
        _lean_processor(fresh)
    else:
        pipeline(shop, name).to(torch.float16).save_pretrained(fresh, safe_serialization=True)
        for part in ("tokenizer", "tokenizer_2"):
            if (fresh / part).is_dir():
                for file in LOSSLESS:
                    shutil.copy(shop.made(part) / file, fresh / part / file)
    run = training_name(shop, name)
    record = {
        "run": run,
        "steps": steps_taken(shop, run),
        "seed": shop.seed,
        "continued": continued(shop, run),
    }
    (fresh / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    write_card(name, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder


def package_lora(shop: Workshop, target: Path | None = None) -> Path:
    """Write the LoRA's file, with kohya's metadata as far as it applies, and its card."""
    folder = target or path(LORAS)
    folder.mkdir(exist_ok=True)
    file = folder / f"{lora.NAME}.safetensors"
    metadata = {"ss_base_model_version": "sd_v1", "ss_network_dim": str(lora.RANK), "ss_network_alpha": str(lora.ALPHA)}
    save_file(trained_lora(shop).tensors(), file, metadata)
    write_lora_card(folder, steps_taken(shop, "lora"), shop.seed)
    return file


def package_controlnet(shop: Workshop, target: Path | None = None) -> Path:
    """Write the ControlNet's folder, as diffusers does, and its card beside it."""
    folder = target or path(CONTROLNETS)
    made = folder / controlnet.NAME
    trained_controlnet(shop).half().save_pretrained(made)
    steps = sum(steps_taken(shop, name) for name in CONTROLNET_COURSES if shop.run(name).checkpoint.exists())
    write_controlnet_card(folder, steps, shop.seed)
    return made


def package_detector(shop: Workshop, target: Path | None = None) -> Path:
    """Write the detector's file, whose metadata says what it is, and a card that waits for its scores."""
    folder = target or path(DETECTORS)
    folder.mkdir(exist_ok=True)
    file = folder / f"{detector.NAME}.safetensors"
    tensors = {name: tensor.half().contiguous() for name, tensor in trained_detector(shop).state_dict().items()}
    save_file(tensors, file, metadata_of(detector.CLASSES, detector.SIDE, detector.WIDTHS))
    record = {"run": "detector", "steps": steps_taken(shop, "detector"), "seed": shop.seed}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    write_detector_card(folder)
    return file


def package_ip_adapter(shop: Workshop, target: Path | None = None, encoder: Path | None = None) -> Path:
    """Write the IP-Adapter's file, with a card that waits for its scores, and the folder of its image encoder."""
    folder = target or path(IP_ADAPTERS)
    folder.mkdir(exist_ok=True)
    file = folder / f"{ip_adapter.NAME}.safetensors"
    save_file(trained_ip_adapter(shop).tensors(), file)
    trained_image_encoder(shop).half().save_pretrained(encoder or path(IMAGE_ENCODER))
    record = {"steps": {run: steps_taken(shop, run) for run in ("image-encoder", "ip-adapter")}, "seed": shop.seed}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    write_ip_adapter_card(folder, encoder or path(IMAGE_ENCODER))
    return file


def _lean_processor(folder: Path) -> None:
    """Name the processor as every transformers version knows it, with or without torchvision."""
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text())
    config["image_processor_type"] = "ViTImageProcessor"
    file.write_text(json.dumps(config, indent=2) + "\n")


def pipeline(
    shop: Workshop, name: str
) -> StableDiffusionPipeline | StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline:
    """The stock pipeline around the working folder's parts."""
    words, readers = tokenizers(shop), encoders(shop, taught=True)
    unet: nn.Module = trained_unet(shop, training_name(shop, name))
    vae = autoencoder(shop)
    schedule = {
        "num_train_timesteps": TIMESTEPS,
        "beta_start": BETAS[0],
        "beta_end": BETAS[1],
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    if name not in {"demo-sdxl", "demo-sdxl-refiner"}:
        # PNDM has no clip_sample; it is kept for the schedulers that are made from this one's config.
        classic = {**schedule, "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False}
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=readers[0],
            tokenizer=words[0],
            unet=unet,
            scheduler=PNDMScheduler.from_config(classic),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    euler = EulerDiscreteScheduler(**schedule, timestep_spacing="leading")
    if name == "demo-sdxl":
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=readers[0],
            text_encoder_2=readers[1],
            tokenizer=words[0],
            tokenizer_2=words[1],
            unet=unet,
            scheduler=euler,
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    return StableDiffusionXLImg2ImgPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=readers[1],
        tokenizer=None,
        tokenizer_2=words[1],
        unet=unet,
        scheduler=euler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def share_parts(folders: Sequence[Path]) -> None:
    """Weights that checkpoints have in common stay in the first of them; the others link to it, as in a hub's cache."""
    first: dict[bytes, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.safetensors")):
            if file.is_symlink():
                continue
            original = first.setdefault(sha256(file.read_bytes()).digest(), file)
            if original != file:
                file.unlink()
                file.symlink_to(os.path.relpath(original, file.parent))


def package_size(names: tuple[str, ...] = NAMES) -> int:
    """Bytes on disk of the packaged checkpoints, each part once."""
    return sum(file.lstat().st_size for name in names for file in path(name).rglob("*") if not file.is_dir())
