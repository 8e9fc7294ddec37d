"""The compiled forwards of an engine's UNets, each compared with the UNet itself before it is used."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from diffusers import UNet2DConditionModel

from deployments.engine.compile.compiled_graph import CompiledGraph
from deployments.engine.compile.graph_cache import GraphCache
from deployments.engine.compile.spec import GraphSpec
from deployments.engine.unet import UnetForward, UnetInputs

CompiledForward = Callable[[UnetInputs], torch.Tensor]

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest mean difference from the UNet's output, as a fraction of its standard deviation; by the weights' type."""
_MOST_FAILURES = 3
"""After so many failed calls in a row a graph isn't called again."""


class _Unusable(Exception):
    """A graph that can't be loaded, or whose output differs from the UNet's: trying again wouldn't help."""


class _LoadedGraph(NamedTuple):
    graph: CompiledGraph
    layouts: list[Any]

    def forward(self, inputs: UnetInputs) -> torch.Tensor:
        return self.graph(inputs.tensors)[0]


class CompiledForwards:
    """Used by the thread that owns the device. The forwards it passes on may be called by several threads at once."""

    def __init__(self, cache: GraphCache, *, channels_last: bool, threads: int) -> None:
        """Create an empty set of forwards.

        Args:
            cache: compiles and loads the graphs.
            channels_last: memory format of the UNets.
            threads: most threads that call one forward at once.
        """
        self.steps = 0  # that compiled forwards took
        self._cache = cache
        self._channels_last = channels_last
        self._threads = threads
        self._specs: WeakKeyDictionary[UNet2DConditionModel, dict[tuple[object, ...], GraphSpec]] = WeakKeyDictionary()
        # for as long as a UNet lives, whichever checkpoint fills it: the weights that graphs read stay where they are
        self._loaded: WeakKeyDictionary[UNet2DConditionModel, dict[GraphSpec, _LoadedGraph]] = WeakKeyDictionary()
        self._failures: Counter[GraphSpec] = Counter()  # in a row

    def call(
        self, unet: UNet2DConditionModel, inputs: UnetInputs, run: Callable[[CompiledForward], torch.Tensor]
    ) -> torch.Tensor | None:
        """What `run` returns for the UNet's compiled forward for inputs like these; None where there is none.

        None also where the call failed. A graph doesn't say why, so the caller takes this step without it, and gets
        the UNet's own error if memory ran out or the device was lost.

        Raises:
            torch.AcceleratorError: the device was lost.
        """
        spec = self._spec(unet, inputs)
        folder = self._cache.find(spec)
        if folder is None:
            return None
        loaded = self._loaded.setdefault(unet, {})
        try:
            if spec not in loaded:
                loaded[spec] = self._load(spec, folder, unet, inputs)
            if loaded[spec].layouts != _layouts(inputs):
                return None
            output = run(loaded[spec].forward)
        except _Unusable as error:
            self._cache.discard(spec, str(error))
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            self._count_failure(spec, error)
        else:
            self.steps += 1
            del self._failures[spec]
            return output
        return None

    def _count_failure(self, spec: GraphSpec, error: RuntimeError) -> None:
        self._failures[spec] += 1
        logger.warning("the compiled forward for %s failed, this step is taken without it: %s", spec, error)
        if self._failures[spec] == _MOST_FAILURES:
            self._cache.refuse(spec, f"it failed {_MOST_FAILURES} times in a row")

    def _spec(self, unet: UNet2DConditionModel, inputs: UnetInputs) -> GraphSpec:
        specs = self._specs.setdefault(unet, {})
        if inputs.kind not in specs:
            specs[inputs.kind] = GraphSpec.of(unet, inputs, channels_last=self._channels_last)
        return specs[inputs.kind]

    def _load(self, spec: GraphSpec, folder: Path, unet: UNet2DConditionModel, inputs: UnetInputs) -> _LoadedGraph:
        """Load a graph and compare its output with the UNet's: a file can be old, or broken.

        Raises:
            _Unusable: it can't be loaded, or its output differs.
            RuntimeError: the comparison itself failed, with torch.OutOfMemoryError for example.
        """
        layouts = _layouts(spec.new_inputs(unet))
        if layouts != _layouts(inputs):
            raise _Unusable(f"it takes inputs laid out as {layouts}, the engine's are {_layouts(inputs)}")
        forward = UnetForward(unet)
        try:
            graph = CompiledGraph(folder, forward.state_dict(), unet.device, self._threads)
        except (RuntimeError, OSError, AttributeError, KeyError) as error:
            raise _Unusable(f"{type(error).__name__}: {error}") from None
        wanted = forward(*inputs.all).float()
        outputs = graph(inputs.tensors)
        if len(outputs) != 1:
            raise _Unusable(f"it has {len(outputs)} outputs, a UNet has one")
        off = ((outputs[0].float() - wanted).abs().mean() / wanted.std()).item()
        if not off < _TOLERANCE[unet.dtype]:  # NaN isn't either
            raise _Unusable(f"its output differs from the UNet's by {off:.2g} standard deviations")
        return _LoadedGraph(graph, layouts)


def _layouts(inputs: UnetInputs) -> list[Any]:
    """What a compiled forward relies on and doesn't check."""
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs.tensors]
