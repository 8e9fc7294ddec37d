"""Sliced attention is attention, also with one head."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from deployments.engine.attention_slices import slice_attention

UNET = Path(__file__).parents[3] / "demo_models" / "demo-sd15" / "unet"


def test_layers_of_one_head_and_of_two() -> None:
    unet = UNet2DConditionModel.from_pretrained(UNET, dtype=torch.float32).eval()
    draws = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 16, 16, generator=draws)
    text = torch.randn(2, 77, unet.config["cross_attention_dim"], generator=draws)
    with torch.inference_mode():
        whole = unet(sample, 500, encoder_hidden_states=text).sample
        slice_attention(unet)
        sliced = unet(sample, 500, encoder_hidden_states=text).sample
    processors = {type(processor).__name__ for processor in unet.attn_processors.values()}
    assert processors == {"SlicedAttnProcessor"}
    assert torch.allclose(sliced, whole, atol=1e-5)
