"""What the tensors that a file has of one layer say together: a LayerUpdate.

Their meaning is that of LyCORIS' modules as they are trained. Its merges of LoHa and LoKr scale twice, which shows
where alpha isn't the rank; A1111 and ComfyUI scale once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deployments.engine.adapters.delta import Difference, Kronecker, Product, hadamard
from deployments.engine.adapters.layer_update import LayerUpdate, Rescaling, ScaledDelta
from deployments.engine.adapters.lora_keys import Kind, shown

_MAX_RANK = 4096


@dataclass(frozen=True, slots=True)
class Scaling:
    """How products are scaled: by alpha / rank, or of a rank-stabilised LoRA (arXiv:2312.03732) by its root."""

    alpha: float
    by_root: bool = False

    def of(self, rank: int) -> float:
        """The factor for products of this rank."""
        return self.alpha / (math.sqrt(rank) if self.by_root else rank)


class LayerTensors:
    """The tensors of one layer, by kind, with their keys."""

    def __init__(self) -> None:
        self._keyed: dict[Kind, tuple[str, torch.Tensor]] = {}

    def add(self, key: str, kind: Kind, tensor: torch.Tensor) -> None:
        """Raises ValueError, naming the key, if there is one of this kind."""
        if kind in self._keyed:
            raise ValueError(f"{shown(key)} means the same as {shown(self._keyed[kind][0])}")
        self._keyed[kind] = key, tensor

    def update(self, scaling: Scaling | None) -> LayerUpdate:
        """What they say together; `scaling` of products without an alpha. Raises ValueError, naming a key."""
        reader = _Reader(self._keyed, scaling)
        deltas = reader.deltas()
        bias = reader.optional("bias")
        rescaling = reader.rescaling(of_delta=bool(deltas))
        reader.finish(complete=bool(deltas) or bias is not None or rescaling is not None)
        return LayerUpdate(shown(next(iter(self._keyed.values()))[0]), deltas, bias, rescaling)


class _Reader:
    """Takes a layer's tensors one after the other, so that what is left over is known."""

    def __init__(self, keyed: Mapping[Kind, tuple[str, torch.Tensor]], scaling: Scaling | None) -> None:
        self._keyed = keyed
        self._left = dict.fromkeys(keyed)
        self._scaling = scaling

    def deltas(self) -> tuple[ScaledDelta, ...]:
        deltas = []
        if self._any("down", "up", "mid"):
            product = self._product("down", "up", "mid")
            deltas.append(ScaledDelta(product, self._scale(len(product.down), self._scaling)))
        if self._any("hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2"):
            first = self._product("hada_w1_b", "hada_w1_a", "hada_t1", turned=True)
            second = self._product("hada_w2_b", "hada_w2_a", "hada_t2", turned=True)
            if (len(first.up), first.down[0].shape) != (len(second.up), second.down[0].shape):
                raise self._misfit("hada_w2_b", "hada_w1_b")
            deltas.append(ScaledDelta(hadamard(first, second), self._scale(len(first.down))))
        if self._any("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"):
            deltas.append(self._kronecker())
        if (weight := self.optional("weight")) is not None:
            deltas.append(ScaledDelta(Difference(weight), 1.0))
        return tuple(deltas)

    def rescaling(self, *, of_delta: bool) -> Rescaling | None:
        if of_delta and (norms := self.optional("magnitude")) is not None:
            return Rescaling(norms, is_norm=True, on_input=False)
        if of_delta and (norms := self.optional("dora_scale")) is not None:
            return Rescaling(norms, is_norm=True, on_input=None)
        if (factors := self.optional("factors")) is not None:
            return Rescaling(factors, is_norm=False, on_input=bool(self._take("on_input")))
        return None

    def finish(self, *, complete: bool) -> None:
        """Raise ValueError if a tensor is left over."""
        for kind in self._left:
            if not complete or kind not in ("alpha", "scalar"):
                raise ValueError(f"{self._key(kind)} is alone: this layer has nothing that it belongs to")

    def optional(self, kind: Kind) -> torch.Tensor | None:
        return self._take(kind) if kind in self._left else None

    def _take(self, kind: Kind) -> torch.Tensor:
        if kind not in self._keyed:
            key = self._key(next(iter(self._keyed)))
            raise ValueError(f"{key} is alone: this layer needs {kind} beside it")
        self._left.pop(kind, None)
        return self._keyed[kind][1]

    def _any(self, *kinds: Kind) -> bool:
        return any(kind in self._left for kind in kinds)

    def _key(self, kind: Kind) -> str:
        return shown(self._keyed[kind][0])

    def _misfit(self, kind: Kind, other: Kind) -> ValueError:
        shape, shape_of_other = (tuple(self._keyed[one][1].shape) for one in (kind, other))
        return ValueError(
            f"{self._key(kind)} has shape {shape}, which doesn't fit {self._key(other)}, {shape_of_other}"
        )

    def _scale(self, rank: int | None, scaling: Scaling | None = None) -> float:
        """Of a delta; without a rank it has none."""
        if "alpha" in self._keyed:
            scaling = Scaling(float(self._take("alpha")))
        scale = 1.0 if scaling is None or rank is None else scaling.of(rank)
        return scale * float(self._take("scalar")) if "scalar" in self._keyed else scale

    def _product(self, down_kind: Kind, up_kind: Kind, mid_kind: Kind, *, turned: bool = False) -> Product:
        """A product of two matrices, or three (CP decomposition).

        `turned`: beside a third matrix LyCORIS writes the second (rank, out), but not a LoRA's.
        """
        down, up = self._take(down_kind), self._take(up_kind)
        if turned and mid_kind in self._left:
            up = up.transpose(0, -1) if up.ndim == 2 else up
        fits = down.ndim in (2, 4) and up.ndim in (2, 4) and len(down) == up.shape[1] and up.shape[2:].numel() == 1
        if not fits or not 1 <= len(down) <= _MAX_RANK:
            raise self._misfit(down_kind, up_kind)
        mid = self.optional(mid_kind)
        if mid is not None:
            rank = len(down)
            if down.shape[2:].numel() != 1 or mid.ndim != 4 or mid.shape[:2] != (rank, rank):
                raise self._misfit(mid_kind, down_kind)
            down = torch.einsum("rshw,si->rihw", mid.to(torch.float32), down.flatten(1).to(torch.float32))
        return Product(down, up)

    def _kronecker(self) -> ScaledDelta:
        rank = None
        if self._any("lokr_w1"):
            first = self._take("lokr_w1")
        else:
            product = self._product("lokr_w1_b", "lokr_w1_a", "mid")
            rank, first = len(product.down), product.map(lambda tensor: tensor.to(torch.float32)).weight()
        if first.ndim != 2:
            raise ValueError(f"{self._key('lokr_w1')} has shape {tuple(first.shape)}, expected two dimensions")
        second: Product | Difference
        if self._any("lokr_w2"):
            second = Difference(self._take("lokr_w2"))
        else:
            second = self._product("lokr_w2_b", "lokr_w2_a", "lokr_t2", turned=True)
            rank = len(second.down)
        return ScaledDelta(Kronecker(first, second), self._scale(rank))
