"""Fills an empty working folder from the packaged checkpoints, so that training can go on from them.

A continuation stage (`fine NAME`) then starts from the packaged weights, and says so in what it is packaged into.
"""

from __future__ import annotations

import shutil

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import ViTForImageClassification

from demo_models import path
from demo_models.nsfw import Watched
from demo_models.workshop import COURSES, FINE, STEPS, Workshop, new_unet

PARTS = {
    "tokenizer": "demo-sd15/tokenizer",
    "tokenizer_2": "demo-sdxl/tokenizer_2",
    "text-encoder": "demo-sd15/text_encoder",
    "text-encoder-2": "demo-sdxl/text_encoder_2",
    "vae": "demo-sd15/vae",
}
"""From a part of the working folder to the packaged folder it comes from."""


def restore(shop: Workshop) -> None:
    """Write the shared parts, and the UNets and the classifier, as if they had just been trained.

    Raises FileExistsError if the folder holds any of it already: trained weights are not written over.
    """
    for part in PARTS:
        if shop.made(part).exists():
            raise FileExistsError(f"{shop.made(part)} exists: restore fills an empty folder")
    for part, packaged in PARTS.items():
        name, _, folder = packaged.partition("/")
        shutil.copytree(path(name) / folder, shop.made(part))
    for run in COURSES:
        if run + FINE in COURSES:
            unet = new_unet(run)
            weights = load_file(path(f"demo-{run}") / "unet" / "diffusion_pytorch_model.safetensors")
            unet.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
            _write(shop, run, unet)
    classifier = ViTForImageClassification.from_pretrained(path("demo-nsfw"), dtype=torch.float32)
    _write(shop, "nsfw", Watched(classifier))


def _write(shop: Workshop, run: str, model: nn.Module) -> None:
    state = {
        "step": STEPS[run],
        "model": model.state_dict(),
        "average": [part.detach().clone() for part in model.parameters()],
        "restored": True,
    }
    torch.save(state, shop.run(run).checkpoint)
