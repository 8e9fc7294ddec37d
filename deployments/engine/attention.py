"""How models attend: fused, by xformers, or in slices, to hold fewer scores at once."""

from typing import Literal

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor


def use_attention(
    model: UNet2DConditionModel | ControlNetModel, attention: Literal["auto", "sdpa", "xformers", "sliced"]
) -> None:
    """Set a model's attention; `attention` as in EngineSettings.

    Raises ModuleNotFoundError or ValueError if xformers can't be used.
    """
    if attention == "xformers":
        model.enable_xformers_memory_efficient_attention()  # tries it, and says what is missing
        attend_by_xformers(model)
    elif attention == "sliced":
        slice_attention(model)


def attend_by_xformers(model: UNet2DConditionModel | ControlNetModel) -> None:
    """By xformers wherever nothing is masked, by torch where texts are filled up."""
    model.set_attn_processor(_XformersUnlessMasked())


class _XformersUnlessMasked:
    """xformers' attention with a mask whose rows are aligned.

    diffusers' processor hands xformers a mask that is expanded over the queries, so whose last stride but one is 0 and
    whose others are the tokens' number: its kernels take none that isn't aligned to 8 elements, or none at all.
    """

    def __init__(self) -> None:
        self._plain, self._masked = XFormersAttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As diffusers' processors, whose signature diffusers looks at."""
        attend = self._plain if attention_mask is None else self._masked
        attended: torch.Tensor = attend(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return attended


def slice_attention(model: UNet2DConditionModel | ControlNetModel) -> None:
    """Half of a layer's heads at a time, whatever their number.

    As `set_attention_slice("auto")`, which halves a single head to none and divides by it then.
    """
    heads = [
        part.sliceable_head_dim
        for child in model.children()
        for part in child.modules()
        if hasattr(part, "set_attention_slice")
    ]
    model.set_attention_slice([max(1, number // 2) for number in heads])
