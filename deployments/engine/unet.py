"""A UNet's forward and its inputs."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel


@dataclass(frozen=True, slots=True, eq=False)
class UnetInputs:
    """The arguments of UnetForward, in its order; None for those that the UNet doesn't take.

    Attributes:
        sample: (rows, channels, height, width), latents, then hints if the UNet takes them.
        timesteps: (rows,).
        hidden_states: (rows, tokens, channels), of the text.
        mask: (rows, tokens), 0 for padding.
        guidance_embedding: (rows, channels), of distilled UNets.
        text_embeds: (rows, channels), SDXL only.
        time_ids: (rows, 5 or 6), SDXL only.
    """

    sample: torch.Tensor
    timesteps: torch.Tensor
    hidden_states: torch.Tensor
    mask: torch.Tensor | None = None
    guidance_embedding: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    @property
    def all(self) -> tuple[torch.Tensor | None, ...]:
        """Every argument, in order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The arguments that are not None, in order."""
        return [tensor for tensor in self.all if tensor is not None]

    def rows(self, rows: slice | torch.Tensor) -> "UnetInputs":
        """A part of the rows, by a slice or by indices."""
        there = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor[rows] for name, tensor in there.items() if tensor is not None})

    @property
    def kind(self) -> tuple[object, ...]:
        """What the compiled forwards of one UNet are told apart by."""
        return self.sample.shape, self.hidden_states.shape[1], self.mask is not None

    @property
    def added(self) -> dict[str, torch.Tensor] | None:
        """SDXL's further conditions, as diffusers' `added_cond_kwargs`; None for other UNets."""
        if self.text_embeds is None or self.time_ids is None:
            return None
        return {"text_embeds": self.text_embeds, "time_ids": self.time_ids}


class UnetForward(torch.nn.Module):
    """A UNet's forward with plain tensors as arguments."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        guidance_embedding: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        **further: Any,
    ) -> torch.Tensor:
        """The model's output: (rows, channels, height, width), in the UNet's dtype.

        Args:
            further: arguments of diffusers' forward that conditionings contribute; the others as in UnetInputs.
        """
        output: torch.Tensor = self.unet(
            sample,
            timesteps,
            hidden_states,
            timestep_cond=guidance_embedding,
            added_cond_kwargs=None if time_ids is None else {"text_embeds": text_embeds, "time_ids": time_ids},
            encoder_attention_mask=mask,
            return_dict=False,
            **further,
        )[0]
        return output
