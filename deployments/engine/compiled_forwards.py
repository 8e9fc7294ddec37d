"""The compiled forwards of an engine's UNets, each tried against the UNet itself before it is used.

Knows UNets, their inputs and what is compiled; nothing of lanes or checkpoints.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from diffusers import UNet2DConditionModel

from deployments.engine.compiled_graph import CompiledGraph
from deployments.engine.graph_spec import GraphSpec
from deployments.engine.graphs import Graphs
from deployments.engine.unet_inputs import UnetInputs
from deployments.engine.unet_step import StepInputs

Inputs = TypeVar("Inputs", UnetInputs, StepInputs)

_LIKENESS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Of the spread of an output, the most that a compiled one may be off on average; by the type of the weights."""


class _Key(NamedTuple):
    """What differs among the forwards of one UNet."""

    size: torch.Size
    tokens: int
    masked: bool


class _Loaded(NamedTuple):
    graph: CompiledGraph
    layouts: list[Any]

    def forward(self, inputs: UnetInputs | StepInputs) -> list[torch.Tensor]:
        return self.graph(inputs.tensors)


class CompiledForwards:
    """Used by the thread that owns the device; what it hands out, by those of row_threads.py as well."""

    def __init__(self, graphs: Graphs, *, channels_last: bool, whole_steps: bool, threads: int) -> None:
        """channels_last: as the UNets are. threads: how many may call a forward at once.

        whole_steps: whether it is asked for StepInputs, and not for UnetInputs.
        """
        self.steps = 0  # taken by compiled forwards
        self.whole_steps = whole_steps
        self._graphs = graphs
        self._channels_last = channels_last
        self._threads = threads
        self._specs: WeakKeyDictionary[UNet2DConditionModel, dict[_Key, GraphSpec]] = WeakKeyDictionary()
        # as long as a UNet lives, whatever checkpoint fills it: the weights that they read stay where they are
        self._loaded: WeakKeyDictionary[UNet2DConditionModel, dict[GraphSpec, _Loaded]] = WeakKeyDictionary()

    def of(self, unet: UNet2DConditionModel, inputs: Inputs) -> Callable[[Inputs], list[torch.Tensor]] | None:
        """The UNet's compiled forward for inputs like these, if there is one. It raises RuntimeError."""
        spec = self._spec(unet, inputs)
        folder = self._graphs.made(spec)
        if folder is None:
            return None
        loaded = self._loaded.setdefault(unet, {})
        if spec not in loaded:
            try:
                loaded[spec] = self._load(spec, folder, unet, inputs)
            except (RuntimeError, OSError, AttributeError, KeyError) as error:
                self._graphs.refuse(spec, f"{type(error).__name__}: {error}")
                return None
        return loaded[spec].forward if loaded[spec].layouts == _layouts(inputs) else None

    def refuse(self, unet: UNet2DConditionModel, inputs: Inputs, why: str) -> None:
        """Go on without the one for such inputs."""
        self._graphs.refuse(self._spec(unet, inputs), why)

    def _spec(self, unet: UNet2DConditionModel, inputs: Inputs) -> GraphSpec:
        specs = self._specs.setdefault(unet, {})
        key = _Key(inputs.size, inputs.hidden_states.shape[1], inputs.mask is not None)
        if key not in specs:
            specs[key] = GraphSpec.of(unet, inputs, channels_last=self._channels_last)
        return specs[key]

    def _load(self, spec: GraphSpec, folder: Path, unet: UNet2DConditionModel, inputs: Inputs) -> _Loaded:
        """Raises RuntimeError where it doesn't do as the UNet does: a file can be old, or broken."""
        layouts = _layouts(spec.new_inputs(unet))
        if layouts != _layouts(inputs):
            raise RuntimeError(f"it takes {layouts}, a step has {_layouts(inputs)}")
        forward = spec.new_forward(unet)
        graph = CompiledGraph(folder, forward.state_dict(), unet.device, self._threads)
        known = forward(*inputs.all)
        wanted = [known] if isinstance(known, torch.Tensor) else known
        for one, other in zip(graph(inputs.tensors), wanted, strict=True):
            off = ((one.float() - other.float()).abs().mean() / other.float().std()).item()
            if not off < _LIKENESS[unet.dtype]:  # NaN isn't either
                raise RuntimeError(f"its output is {off:.2g} of the UNet's spread off")
        return _Loaded(graph, layouts)


def _layouts(inputs: UnetInputs | StepInputs) -> list[Any]:
    """What a compiled forward relies on and doesn't check."""
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs.tensors]
