"""Steps that are one compiled graph each, for the batches that one can take.

Knows lanes and their layout in a batch; nothing of how a graph is compiled or called.
"""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel

from deployments.engine.batch import Batch
from deployments.engine.compile.forwards import CompiledForwards
from deployments.engine.compile.unet_step import TERMS, StepInputs, step_kind
from deployments.engine.denoising.batch_inputs import BatchLayout, padded
from deployments.engine.device import pinned_numbers
from deployments.engine.lanes.lane import Lane

_Terms = Sequence[tuple[float, torch.Tensor]]


class WholeSteps:
    """Of one UNet."""

    def __init__(self, compiled: CompiledForwards, unet: UNet2DConditionModel) -> None:
        self._compiled = compiled
        self._unet = unet

    def take(self, batch: Batch[Lane], layout: BatchLayout) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Guided outputs and next latents (lanes, channels, height, width), float32; None where it isn't compiled, or
        can't be: pinned lanes keep the bits that they have without, and the graph knows no LoRAs or ControlNets.
        """
        if layout.adapters or layout.conditions or batch.lanes[0].key.pinned:
            return None
        places = (layout.bucket, *layout.lanes[0].latents.shape)
        if self._compiled.missing(self._unet, step_kind(places, layout.hidden_states, layout.mask)):
            return None
        inputs = step_inputs(layout)
        taken = None if inputs is None else self._compiled.call(self._unet, inputs, lambda step: step(inputs))
        if taken is None:
            return None
        outputs, latents = taken
        self._compiled.steps += 1
        return outputs[: len(batch.lanes)], latents[: len(batch.lanes)]


def step_inputs(layout: BatchLayout) -> StepInputs | None:
    """Of the step that the lanes take next; None where the sampler of one looks back on too much."""
    lanes, places = layout.lanes, layout.bucket
    absent = torch.zeros_like(lanes[0].latents)
    output = torch.empty_like(absent)  # stands for what the step will give
    known: list[_Terms] = []
    numbers: list[list[float]] = []
    for lane in lanes:
        terms = lane.update_terms(output)
        others = [(factor, tensor) for factor, tensor in terms if tensor is not output]
        if len(others) > TERMS:
            return None
        of_output = sum(factor for factor, tensor in terms if tensor is output)
        rescale = lane.request.guidance_rescale if lane.rows == 2 else 0.0
        filled = [factor for factor, _ in others] + [0.0] * (TERMS - len(others))
        numbers.append([*filled, of_output, lane.current.input_scale, lane.request.guidance_scale, rescale])
        known.append(others)
    empty = places - len(lanes)
    numbers += [[0.0] * len(numbers[0])] * empty
    tensors = [
        known[place][term][1] if place < len(lanes) and term < len(known[place]) else absent
        for term in range(TERMS)
        for place in range(places)
    ]
    return StepInputs(
        terms=torch.stack(tensors).view(TERMS, places, *absent.shape),
        numbers=pinned_numbers([*map(list, zip(*numbers, strict=True)), layout.timesteps], absent.device),
        indices=layout.indices,
        hidden_states=layout.hidden_states,
        mask=layout.mask,
        guidance_embedding=layout.guidance_embedding,
        text_embeds=layout.text_embeds,
        time_ids=layout.time_ids,
        hints=None if layout.hints is None else padded(layout.hints, empty),
    )
