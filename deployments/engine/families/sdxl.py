"""Stable Diffusion XL base (arXiv:2307.01952): CLIP ViT-L and OpenCLIP bigG, 2048 context channels, 1024 x 1024."""

from deployments.engine.families.family import Family, TextEncoderComponent
from deployments.engine.families.sdxl_refiner import SDXL_REFINER

SDXL = Family(
    name="sdxl",
    pipeline="StableDiffusionXLPipeline",
    inpainting_pipeline="StableDiffusionXLInpaintPipeline",
    text_encoders=(
        TextEncoderComponent(
            folder="text_encoder",
            tokenizer="tokenizer",
            class_name="CLIPTextModel",
            prefix="conditioner.embedders.0.transformer.",
        ),
        TextEncoderComponent(
            folder="text_encoder_2",
            tokenizer="tokenizer_2",
            class_name="CLIPTextModelWithProjection",
            prefix="conditioner.embedders.1.model.",
            open_clip=True,
        ),
    ),
    scheduler=SDXL_REFINER.scheduler,
    text_layer=2,
    embedding_parts=2,
    time_ids=("original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width"),
    zeroes_empty_negative=True,
    refined_by=SDXL_REFINER,
)
