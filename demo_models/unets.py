"""The shapes of the demo UNets: Stable Diffusion's own block order, in miniature.

Widths agree where they can, so that one may start from another's weights (`warm_start`).
"""

from __future__ import annotations

from diffusers import UNet2DConditionModel

from demo_models.text_encoders import SECOND_WIDTH, WIDTH

TIME_ID_WIDTH = 32
GROUPS = 8


def new_sd15_unet() -> UNet2DConditionModel:
    """SD 1.5's four levels, attention in the first three, one layer each instead of two."""
    return UNet2DConditionModel(
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(32, 64, 80, 64),
        attention_head_dim=(1, 2, 2, 2),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=GROUPS,
    )


def new_sdxl_unet() -> UNet2DConditionModel:
    """SDXL's three levels, attention in the last two, with size and pooled-text conditioning."""
    return _sdxl(WIDTH + SECOND_WIDTH, 6)


def new_refiner_unet() -> UNet2DConditionModel:
    """SDXL's refiner: reads the second encoder only, and an aesthetic score instead of a target size."""
    return _sdxl(SECOND_WIDTH, 5)


def _sdxl(context: int, time_ids: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        block_out_channels=(32, 64, 80),
        attention_head_dim=(1, 2, 2),
        layers_per_block=1,
        cross_attention_dim=context,
        norm_num_groups=GROUPS,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=SECOND_WIDTH + time_ids * TIME_ID_WIDTH,
    )
