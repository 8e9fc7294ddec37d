"""A whole step as one forward: scaling, UNet, guidance, and the samplers' update, for any mixture of lanes.

What StepInputs hold is laid out for a bucket of rows alone, so that one compiled graph serves whatever lanes fill it.
Knows tensors and diffusers' UNet2DConditionModel; nothing of lanes, samplers or batches.
"""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from deployments.engine.compile.graph_inputs import GraphInputs
from deployments.engine.unet import UnetForward

TERMS = 8
"""Most tensors that a lane's next latents are a sum of, this step's output apart; only PNDM's Runge-Kutta start, which
no checkpoint of SD asks for, has more."""


@dataclass(frozen=True, slots=True, eq=False)
class StepInputs(GraphInputs):
    """Of a bucket of rows: as many places for lanes as rows, of which the last may be empty (zeros).

    terms: (TERMS, places, channels, height, width), float32: first each lane's latents, then whatever else its next
        ones are a sum of.
    numbers: (TERMS + 5, places), float32, of each place: the factors of its terms and of this step's output, the scale
        of the UNet's input, the guidance scale, the guidance rescale (0 for none); of each row: its timestep.
    indices: (3, places), int64: of each row the place of its lane; of each place the rows of its prompt and of its
        negative prompt, one row where there is no guidance.
    hints: (places, channels + 1, height, width), of a UNet that takes them. The others as in UnetInputs, a row each.
    """

    terms: torch.Tensor
    numbers: torch.Tensor
    indices: torch.Tensor
    hidden_states: torch.Tensor
    mask: torch.Tensor | None = None
    guidance_embedding: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    hints: torch.Tensor | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """What differs among the steps of one UNet."""
        return step_kind(self.terms.shape[1:], self.hidden_states, self.mask)


def step_kind(places: tuple[int, ...], hidden_states: torch.Tensor, mask: torch.Tensor | None) -> tuple[object, ...]:
    """StepInputs' kind, before there are any. places: (places, channels, height, width)."""
    return tuple(places), hidden_states.shape[1], mask is not None


class UnetStep(torch.nn.Module):
    """A step with plain tensors as arguments."""

    def __init__(self, unet: UNet2DConditionModel, *, channels_last: bool) -> None:
        """channels_last: the memory format of the UNet's input."""
        super().__init__()
        self.unet = unet
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(
        self,
        terms: torch.Tensor,
        numbers: torch.Tensor,
        indices: torch.Tensor,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        guidance_embedding: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        hints: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Guided outputs and the next latents (places, channels, height, width), float32."""
        factors, (of_output, scale, guidance, rescale, timesteps) = numbers[:TERMS], numbers[TERMS:].unbind()
        place, positive, negative = indices.unbind()
        sample = terms[0] * _wide(scale)
        if hints is not None:
            sample = torch.cat([sample, hints], dim=1)
        sample = sample[place].to(dtype=hidden_states.dtype, memory_format=self._memory_format)
        output = UnetForward(self.unet)(
            sample, timesteps, hidden_states, mask, guidance_embedding, text_embeds, time_ids
        ).float()
        prompted, unprompted = output[positive], output[negative]
        guided = unprompted + _wide(guidance) * (prompted - unprompted)
        # arXiv:2305.08891, 3.4; where nothing is to be rescaled the spread may be zero
        spread = prompted.std((1, 2, 3)) / guided.std((1, 2, 3))
        guided = guided * _wide(torch.where(rescale > 0, rescale * spread + (1 - rescale), 1.0))
        total = _wide(of_output) * guided
        for term, factor in zip(terms, factors, strict=True):
            total = total + _wide(factor) * term
        return guided, total


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.view(-1, 1, 1, 1)
