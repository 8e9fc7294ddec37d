"""How models attend: fused, by xformers, or in slices, to hold fewer scores at once."""

from typing import Literal

from diffusers import ControlNetModel, UNet2DConditionModel


def use_attention(
    model: UNet2DConditionModel | ControlNetModel, attention: Literal["auto", "sdpa", "xformers", "sliced"]
) -> None:
    """attention: as in EngineSettings."""
    if attention == "xformers":
        model.enable_xformers_memory_efficient_attention()
    elif attention == "sliced":
        slice_attention(model)


def slice_attention(model: UNet2DConditionModel | ControlNetModel) -> None:
    """Half of a layer's heads at a time, whatever their number: as `set_attention_slice("auto")`, which halves a single
    head to none and divides by it then.
    """
    heads = [
        part.sliceable_head_dim
        for child in model.children()
        for part in child.modules()
        if hasattr(part, "set_attention_slice")
    ]
    model.set_attention_slice([max(1, number // 2) for number in heads])
