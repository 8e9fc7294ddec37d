"""Peaks of tensors that are never there."""

import torch
import torch.nn.functional as F  # noqa: N812

from deployments.engine.memory.peak_tracing import peak_bytes


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_what_is_freed_makes_room_and_views_take_none() -> None:
    def forward() -> torch.Tensor:
        first = empty(1000)  # 4,000 bytes
        second = first * 2  # 8,000
        del first
        third = second.view(10, 100).t()
        third.add_(1)
        return third + 1  # 4,000 less, 4,000 more

    assert peak_bytes(forward) == 8000


def test_weights_that_were_there_before_are_not_counted() -> None:
    layer = torch.nn.Linear(64, 64, device="meta")
    assert peak_bytes(lambda: layer(empty(2, 64))) == 2 * 2 * 64 * 4


def test_fused_attention_has_no_scores_and_written_out_attention_has() -> None:
    def fused() -> torch.Tensor:
        query = empty(1, 2, 1000, 8)
        return F.scaled_dot_product_attention(query, query, query)

    def written_out() -> torch.Tensor:
        query = empty(1, 2, 1000, 8)
        return (query @ query.transpose(-1, -2)).softmax(-1) @ query

    tensor, scores = 2 * 1000 * 8 * 4, 2 * 1000 * 1000 * 4
    assert peak_bytes(fused) == 2 * tensor
    assert peak_bytes(written_out) >= tensor + 2 * scores


def test_a_convolution_copies_its_weights_and_an_input_in_another_memory_format() -> None:
    convolution = torch.nn.Conv2d(8, 8, 3, padding=1, device="meta")
    image, weights = 8 * 32 * 32 * 4, 8 * 8 * 9 * 4
    assert peak_bytes(lambda: convolution(empty(1, 8, 32, 32))) == 2 * image + weights
    convolution.to(memory_format=torch.channels_last)
    assert peak_bytes(lambda: convolution(empty(1, 8, 32, 32))) == 3 * image + weights
