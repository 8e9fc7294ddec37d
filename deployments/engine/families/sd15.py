"""Stable Diffusion 1.x (arXiv:2112.10752): CLIP ViT-L, 768 context channels, 512 x 512 pixels."""

from deployments.engine.families.family import BETAS, Family, TextEncoderComponent

SD15 = Family(
    name="sd15",
    pipeline="StableDiffusionPipeline",
    inpainting_pipeline="StableDiffusionInpaintPipeline",
    distilled_pipeline="LatentConsistencyModelPipeline",
    text_encoders=(
        TextEncoderComponent(
            folder="text_encoder",
            tokenizer="tokenizer",
            class_name="CLIPTextModel",
            prefix="cond_stage_model.transformer.",
        ),
    ),
    scheduler={
        "_class_name": "PNDMScheduler",
        **BETAS,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
    },
    # checkpoints of the first years say steps_offset 0 or clip_sample true
    corrects_scheduler=True,
    # force_upcast is meant for SDXL, but AutoencoderKL's default: SD1.5 decodes in 16 bits
    upcasts_vae=False,
)
