"""Measures the peak memory of a forward on meta tensors, which have sizes and no memory.

Every tensor that an operation returns counts until it is freed. A kernel's own buffers aren't seen, except for those
that matter: attention's (below), and the copies that a convolution makes of its weights, in the layout of the CPU's
kernels, and of an input in another memory format.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(forward: Callable[[], object]) -> int:
    """The most bytes at once of the meta tensors that `forward` creates, its inputs included.

    scaled_dot_product_attention counts without scores, as in the fused kernels of CUDA and the CPU. Other attention is
    counted as it is written.
    """
    tensors = _LiveTensors()
    with torch.no_grad(), _FusedKernels(), tensors:
        forward()
    return tensors.peak


class _LiveTensors(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # else a view, or done in place
                self._live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        of_kernel = _copied_bytes(args[0], args[1]) if func is torch.ops.aten.convolution.default else 0
        self.peak = max(self.peak, self._live + of_kernel)
        return result

    def _forget(self, size: int) -> None:
        self._live -= size


class _FusedKernels(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (F.group_norm, F.layer_norm):  # torch's own meta of these two takes half of a trace's time
            return torch.empty_like(args[0])
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = args[:3]
        batch, heads, tokens, _ = query.shape
        # in memory as the kernels leave it: heads beside each other, so that joining them copies nothing
        return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)


def _storages(tensors: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor)]


def _copied_bytes(image: torch.Tensor, weight: torch.Tensor) -> int:
    last = torch.channels_last
    reordered = weight.is_contiguous(memory_format=last) and not weight.is_contiguous()
    reordered = reordered and not image.is_contiguous(memory_format=last)
    return weight.nbytes + (image.nbytes if reordered else 0)
