"""What all inputs of graphs share: tensors in the order of their fields, some of which may not be there."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True, slots=True, eq=False)
class GraphInputs:
    """Its fields are the arguments of a forward, in its order: tensors, or None."""

    @property
    def all(self) -> tuple[torch.Tensor | None, ...]:
        """The arguments."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Those that are there."""
        return [tensor for tensor in self.all if tensor is not None]
