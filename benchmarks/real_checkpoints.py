"""SD1.5 at its real size with random weights, as a diffusers folder that every contender reads.

    python -m benchmarks.real_checkpoints FOLDER

Stored in float16, as published checkpoints are. 2.1 GB.
"""

import shutil
import sys
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.real_architectures import SCHEDULERS, random_denoiser
from deployments.engine.checkpoints.clip_tokenizer import load_tokenizer
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.families.registry import FAMILIES

_DTYPE = torch.float16
_PREFIX = "text_model."  # of CLIP's weights in published files; transformers 5 leaves it out, others look for it


_INDEX = """{
  "_class_name": "StableDiffusionPipeline",
  "_diffusers_version": "0.42.1",
  "feature_extractor": [null, null],
  "image_encoder": [null, null],
  "requires_safety_checker": false,
  "safety_checker": [null, null],
  "scheduler": ["diffusers", "EulerDiscreteScheduler"],
  "text_encoder": ["transformers", "CLIPTextModel"],
  "tokenizer": ["transformers", "CLIPTokenizer"],
  "unet": ["diffusers", "UNet2DConditionModel"],
  "vae": ["diffusers", "AutoencoderKL"]
}
"""


def _write(folder: Path) -> None:
    published = FAMILIES["sd15"].published
    random = random_denoiser(CheckpointSpec(family="sd15", source="random"), torch.device("cpu"), torch.float32)
    random.unet.to(_DTYPE).save_pretrained(folder / "unet")
    random.vae.to(_DTYPE).save_pretrained(folder / "vae")
    load_tokenizer(published / "tokenizer").save_pretrained(folder / "tokenizer")
    torch.manual_seed(2)
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(published / "text_encoder")).to(_DTYPE)
    encoder.save_pretrained(folder / "text_encoder")
    tensors = {f"{_PREFIX}{name.removeprefix(_PREFIX)}": tensor for name, tensor in encoder.state_dict().items()}
    save_file(tensors, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    EulerDiscreteScheduler.from_config(SCHEDULERS["sd15"]).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(_INDEX, encoding="utf-8")


def main() -> None:
    """Write the folder that the command line names, whole or not at all."""
    folder = Path(sys.argv[1])
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _write(unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    main()
