"""Stable Diffusion XL refiner (arXiv:2307.01952, 2.5).

The base's OpenCLIP bigG alone, 1280 context channels, and an aesthetic score. It takes over the base's latents at any
fraction of the schedule.
"""

from deployments.engine.families.family import BETAS, Family, TextEncoderComponent

SDXL_REFINER = Family(
    name="sdxl-refiner",
    pipeline="StableDiffusionXLImg2ImgPipeline",
    text_encoders=(
        TextEncoderComponent(
            folder="text_encoder_2",
            tokenizer="tokenizer_2",
            class_name="CLIPTextModelWithProjection",
            prefix="conditioner.embedders.0.model.",
            open_clip=True,
        ),
    ),
    scheduler={
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    text_layer=2,
    embedding_parts=2,
    time_ids=("original_height", "original_width", "crop_top", "crop_left", "aesthetic_score"),
    refines=True,
)
