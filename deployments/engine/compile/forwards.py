"""The compiled forwards of an engine's UNets and VAEs, each tried against the model itself before it is used.

Knows models, their inputs and what is compiled; nothing of lanes or checkpoints.
"""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch

from deployments.engine.compile.graphs import Graphs
from deployments.engine.compile.library import CompiledGraph
from deployments.engine.compile.spec import GraphSpec, Inputs, Model
from deployments.engine.compile.unet_step import StepInputs
from deployments.engine.compile.vae_decode import DecodeInputs
from deployments.engine.unet import UnetInputs

Given = TypeVar("Given", UnetInputs, StepInputs, DecodeInputs)
Made = TypeVar("Made")

logger = logging.getLogger(__name__)

_LIKENESS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Of the spread of an output, the most that a compiled one may be off on average; by the type of the weights."""
_FAILURES = 3
"""Of so many runs in a row one isn't tried again."""


class _Unusable(Exception):
    """A library that can't be loaded, or doesn't do as the model does: it never will."""


class _Loaded(NamedTuple):
    graph: CompiledGraph
    layouts: list[Any]

    def forward(self, inputs: Inputs) -> list[torch.Tensor]:
        return self.graph(inputs.tensors)


class CompiledForwards:
    """Used by the thread that owns the device; what it hands out, by those of row_threads.py as well."""

    def __init__(self, graphs: Graphs, *, channels_last: bool, whole_steps: bool, decodes: bool, threads: int) -> None:
        """channels_last: as the models are. threads: how many may call a forward at once.

        whole_steps: whether it is asked for StepInputs, and not for UnetInputs. decodes: and for DecodeInputs.
        """
        self.steps = 0  # taken by compiled forwards
        self.whole_steps = whole_steps
        self.decodes = decodes
        self._graphs = graphs
        self._channels_last = channels_last
        self._threads = threads
        self._specs: WeakKeyDictionary[Model, dict[tuple[object, ...], GraphSpec]] = WeakKeyDictionary()
        # as long as a model lives, whatever checkpoint fills it: the weights that they read stay where they are
        self._loaded: WeakKeyDictionary[Model, dict[GraphSpec, _Loaded]] = WeakKeyDictionary()
        self._failures: Counter[GraphSpec] = Counter()  # since it last did

    def call(
        self, model: Model, inputs: Given, run: Callable[[Callable[[Given], list[torch.Tensor]]], Made]
    ) -> Made | None:
        """What `run` makes with the model's compiled forward for inputs like these; None where there is none.

        And where it failed. A library doesn't tell of what: the caller does without this once, and meets the same where
        memory ran out or the device was lost. Raises torch.AcceleratorError where that is known.
        """
        spec = self._spec(model, inputs)
        folder = self._graphs.made(spec)
        if folder is None:
            return None
        loaded = self._loaded.setdefault(model, {})
        try:
            if spec not in loaded:
                loaded[spec] = self._load(spec, folder, model, inputs)
            if loaded[spec].layouts != _layouts(inputs):
                return None
            made = run(loaded[spec].forward)
        except _Unusable as error:
            self._graphs.discard(spec, str(error))
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            self._failed(spec, error)
        else:
            del self._failures[spec]
            return made
        return None

    def missing(self, model: Model, kind: tuple[object, ...]) -> bool:
        """Whether inputs of a kind that was asked for before needn't be made yet. Counts as asking."""
        spec = self._specs.get(model, {}).get(kind)
        return spec is not None and self._graphs.made(spec) is None

    def _failed(self, spec: GraphSpec, error: RuntimeError) -> None:
        self._failures[spec] += 1
        logger.warning("the compiled forward for %s failed, it goes without this once: %s", spec, error)
        if self._failures[spec] == _FAILURES:
            self._graphs.refuse(spec, f"it failed {_FAILURES} times in a row")

    def _spec(self, model: Model, inputs: Inputs) -> GraphSpec:
        specs = self._specs.setdefault(model, {})
        if inputs.kind not in specs:
            specs[inputs.kind] = GraphSpec.of(model, inputs, channels_last=self._channels_last)
        return specs[inputs.kind]

    def _load(self, spec: GraphSpec, folder: Path, model: Model, inputs: Inputs) -> _Loaded:
        """Raises _Unusable where it doesn't do as the model does: a file can be old, or broken.

        And RuntimeError where one of the two didn't come to its end, torch.OutOfMemoryError for example.
        """
        layouts = _layouts(spec.new_inputs(model))
        if layouts != _layouts(inputs):
            raise _Unusable(f"it takes {layouts}, the engine has {_layouts(inputs)}")
        forward = spec.new_forward(model)
        try:
            graph = CompiledGraph(folder, forward.state_dict(), model.device, self._threads)
        except (RuntimeError, OSError, AttributeError, KeyError) as error:
            raise _Unusable(f"{type(error).__name__}: {error}") from None
        known = forward(*inputs.all)
        wanted = [known] if isinstance(known, torch.Tensor) else known
        found = graph(inputs.tensors)
        if len(found) != len(wanted):
            raise _Unusable(f"it has {len(found)} outputs, the model's {len(wanted)}")
        for one, other in zip(found, wanted, strict=True):
            off = ((one.float() - other.float()).abs().mean() / other.float().std()).item()
            if not off < _LIKENESS[model.dtype]:  # NaN isn't either
                raise _Unusable(f"its output is {off:.2g} of the model's spread off")
        return _Loaded(graph, layouts)


def _layouts(inputs: Inputs) -> list[Any]:
    """What a compiled forward relies on and doesn't check."""
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs.tensors]
