"""Encodes a prompt and a negative prompt once, with diffusers, into the embeddings file that all contenders read.

So text encoding is in nobody's figures: a service encodes a prompt once and the engine never does.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from benchmarks.workload import save_conditioning
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.types import Conditioning, PromptEmbedding

PROMPT = "a large red circle and a small yellow square on a blue background"
NEGATIVE_PROMPT = "blurry"  # not empty: SDXL would take zeros


def encode_prompts(spec: CheckpointSpec, path: Path) -> None:
    """Write the embeddings to `path`, computed in float32 on the CPU."""
    encoders = load_text_encoders(spec, torch.device("cpu"), torch.float32).encoders
    parts: dict[str, Any] = {
        "vae": None,
        "unet": None,
        "scheduler": None,
        "text_encoder": encoders[0].model,
        "tokenizer": encoders[0].tokenizer,
    }
    if len(encoders) == 1:
        pipeline: Any = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        arrays = pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE_PROMPT)
    else:
        pipeline = StableDiffusionXLPipeline(
            **parts, text_encoder_2=encoders[1].model, tokenizer_2=encoders[1].tokenizer, add_watermarker=False
        )
        arrays = pipeline.encode_prompt(
            PROMPT, device="cpu", do_classifier_free_guidance=True, negative_prompt=NEGATIVE_PROMPT
        )
    hidden, negative_hidden, *pooled = [array[0].numpy() for array in arrays]
    positive_pooled, negative_pooled = pooled or (None, None)
    conditioning = Conditioning(
        PromptEmbedding(hidden, positive_pooled), PromptEmbedding(negative_hidden, negative_pooled)
    )
    save_conditioning(path, conditioning)
