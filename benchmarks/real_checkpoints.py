"""SD1.5 and SDXL at their real size with random weights, as diffusers folders that any program reads.

    python -m benchmarks.real_checkpoints FOLDER

writes SD1.5 in float16, as published checkpoints are: 2.1 GB.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.real_architectures import SCHEDULERS, random_denoiser
from deployments.engine.checkpoints.clip_tokenizer import load_tokenizer
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES

_PREFIX = "text_model."  # of CLIP's weights in published files; transformers 5 leaves it out, others look for it
_ENCODERS: dict[str, Any] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}
_PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
# parts that these pipelines may have and these checkpoints haven't
_ABSENT: dict[str, dict[str, Any]] = {
    "sd15": {"requires_safety_checker": False, "safety_checker": [None, None]},
    "sdxl": {"force_zeros_for_empty_prompt": True, "add_watermarker": False},
}


def write_checkpoint(
    folder: Path,
    family: FamilyName,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    variant: str | None = None,
    drawn_in: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint of family "sd15" or "sdxl".

    Args:
        folder: for its models; files that are there under other names stay.
        family: whose published architecture it has.
        seed: of its weights.
        dtype: that it is stored in.
        variant: of its files' names, as published ones have ("fp16").
        drawn_in: dtype in which UNet and VAE are drawn; bfloat16 takes half of the memory.
    """
    published, components = FAMILIES[family].published, FAMILIES[family].text_encoders
    random = random_denoiser(CheckpointSpec(family=family, source="random"), torch.device("cpu"), drawn_in, seed)
    for name, model in (("unet", random.unet), ("vae", random.vae)):
        torch.nn.Module.to(model, dtype)  # diffusers' own `to` warns of modules to keep in float32: there are none
        model.save_pretrained(folder / name, variant=variant)
    for number, component in enumerate(components):
        load_tokenizer(published / component.tokenizer).save_pretrained(folder / component.tokenizer)
        torch.manual_seed(2 + number + len(components) * seed)
        config = CLIPTextConfig.from_pretrained(published / component.folder)
        encoder = _ENCODERS[component.class_name](config).to(dtype)
        encoder.save_pretrained(folder / component.folder, variant=variant)
        path = folder / component.folder / ".".join(filter(None, ("model", variant, "safetensors")))
        save_file(_published_names(encoder), path, metadata={"format": "pt"})
    EulerDiscreteScheduler.from_config(SCHEDULERS[family]).save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": _PIPELINES[family],
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{component.folder: ["transformers", component.class_name] for component in components},
        **{component.tokenizer: ["transformers", "CLIPTokenizer"] for component in components},
        **_ABSENT[family],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _published_names(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = encoder.state_dict()
    if any(name.startswith(_PREFIX) for name in tensors):
        return tensors
    return {f"{_PREFIX}{name}": tensor for name, tensor in tensors.items()}


def main() -> None:
    """Write the folder that the command line names, whole or not at all."""
    folder = Path(sys.argv[1])
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_checkpoint(unfinished, "sd15")
    unfinished.rename(folder)


if __name__ == "__main__":
    main()
