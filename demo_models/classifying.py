"""Measures the packaged classifier on pictures that were never trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessorPil

from demo_models.drawing import Picture
from demo_models.nsfw import LABELS
from demo_models.nsfw_pictures import held_out_pictures


def classify(folder: Path, pictures: list[Picture]) -> list[str]:
    """The label of each picture."""
    classifier = ViTForImageClassification.from_pretrained(folder, dtype=torch.float32)
    processor = ViTImageProcessorPil.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for picture in pictures:
            pixels = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
            found.append(LABELS[int(classifier(pixel_values=pixels).logits.argmax())])
    return found


def accuracy(folder: Path, vae_folder: Path, count: int, seed: str = "held-out") -> dict[str, float]:
    """For each label, the share of its pictures that got it."""
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32)
    pool = held_out_pictures(vae, count, seed)
    found = classify(folder, [item.picture for item in pool])
    truth = [LABELS[int(item.unsafe)] for item in pool]
    return {
        label: sum(f == t == label for f, t in zip(found, truth, strict=True)) / truth.count(label)
        for label in LABELS.values()
    }
