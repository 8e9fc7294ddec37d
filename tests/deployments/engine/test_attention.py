"""Sliced attention is attention, also with one head; xformers is never handed a mask that it has no kernel for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from torch.nn.functional import scaled_dot_product_attention

from deployments.engine.attention import attend_by_xformers, slice_attention, use_attention

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


def test_texts_that_are_filled_up_go_past_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []

    def operator(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_bias: torch.Tensor | None, **_: object
    ) -> torch.Tensor:
        if attn_bias is not None and any(stride % 8 for stride in attn_bias.stride()[:-1]):
            raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")
        calls.append(key.shape)
        return scaled_dot_product_attention(query, key, value, attn_bias)

    # stands for a package that isn't installed where there is no CUDA
    ops = SimpleNamespace(memory_efficient_attention=operator)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops), raising=False)
    unet = UNet2DConditionModel.from_pretrained(UNET, dtype=torch.float32).eval()
    draws = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 16, 16, generator=draws)
    text = torch.randn(2, 154, unet.config["cross_attention_dim"], generator=draws)
    filled_up = torch.ones(2, 154)
    filled_up[0, 77:] = 0.0
    with torch.inference_mode():
        wanted = [unet(sample, 500, text, encoder_attention_mask=mask).sample for mask in (None, filled_up)]
        attend_by_xformers(unet)
        found = [unet(sample, 500, text, encoder_attention_mask=mask).sample for mask in (None, filled_up)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    texts = sum(tokens == 154 for _, tokens, _ in calls)
    assert (texts, len(calls)) == (len(calls) // 3, 3 * texts), "texts where none is masked, pictures in both"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no CUDA")
def test_xformers_is_refused_where_it_cannot_run() -> None:
    unet = UNet2DConditionModel.from_pretrained(UNET, dtype=torch.float32)
    with pytest.raises((ModuleNotFoundError, ValueError)):
        use_attention(unet, "xformers")
