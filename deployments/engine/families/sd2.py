"""Stable Diffusion 2.x: OpenCLIP ViT-H, 1024 context channels, 768 x 768 pixels and v-prediction.

The base checkpoints (512 x 512) predict the noise.
"""

from deployments.engine.families.family import BETAS, Family, TextEncoderComponent

SD2 = Family(
    name="sd2",
    pipeline="StableDiffusionPipeline",
    inpainting_pipeline="StableDiffusionInpaintPipeline",
    text_encoders=(
        TextEncoderComponent(
            folder="text_encoder",
            tokenizer="tokenizer",
            # of 23 layers: the UNet was trained on the layer before OpenCLIP's last, which a single file still has
            class_name="CLIPTextModel",
            prefix="cond_stage_model.model.",
            open_clip=True,
        ),
    ),
    scheduler={
        "_class_name": "DDIMScheduler",
        **BETAS,
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "set_alpha_to_one": False,
    },
    inpainting_predicts="epsilon",  # they were trained from the base checkpoint
    specifications={"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"},
    corrects_scheduler=True,
    linear_projections=True,
    upcasts_vae=False,
)
