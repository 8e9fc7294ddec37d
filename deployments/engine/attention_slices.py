"""Attention in slices, whatever the number of heads: half of a layer's at a time, to hold fewer scores at once."""

from diffusers import UNet2DConditionModel


def slice_attention(unet: UNet2DConditionModel) -> None:
    """As `set_attention_slice("auto")`, which halves a single head to none and divides by it then."""
    heads = [
        part.sliceable_head_dim
        for child in unet.children()
        for part in child.modules()
        if hasattr(part, "set_attention_slice")
    ]
    unet.set_attention_slice([max(1, number // 2) for number in heads])
