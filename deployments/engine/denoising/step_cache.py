"""Step caching (DeepCache, arXiv:2312.00858): a UNet's deep features, kept at a whole step for shallow ones after it.

Deep is all but the outermost branch: the first convolution, the last layer of the way up, the last convolution. These a
shallow step computes anew, on the features that the whole step before it had there. Knows diffusers'
UNet2DConditionModel; nothing of lanes, batches or of which steps are whole.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D

from deployments.engine.denoising.unet_inputs import UnetInputs


class StepCache:
    """The branch of one UNet. Its modules are called as they are, with whatever hooks are on them."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet: Any = unet
        self._here = threading.local()  # what the forward of a thread has kept

    @property
    def possible(self) -> bool:
        """The way up ends in a block of SD's kinds."""
        return isinstance(self._unet.up_blocks[-1], CrossAttnUpBlock2D | UpBlock2D)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Forwards inside of the block keep their deep features, each until its thread takes them."""
        hook = self._unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(self._keep)
        try:
            yield
        finally:
            hook.remove()

    def take(self) -> torch.Tensor:
        """The features (rows, channels, height, width) of this thread's last forward, in the UNet's type."""
        deep: torch.Tensor = self._here.deep
        del self._here.deep
        return deep

    def shallow(self, inputs: UnetInputs, deep: torch.Tensor) -> torch.Tensor:
        """The UNet's output (rows, channels, height, width) on features that were kept, a row each."""
        unet, block = self._unet, self._unet.up_blocks[-1]
        sample = 2 * inputs.sample - 1 if unet.config.center_input_sample else inputs.sample
        times = unet.get_time_embed(sample=sample, timestep=inputs.timesteps)
        embedding = unet.time_embedding(times, inputs.guidance_embedding)
        text = inputs.hidden_states
        added = unet.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs=inputs.added)
        embedding = embedding if added is None else embedding + added
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        states = torch.cat([deep, unet.conv_in(sample)], dim=1)
        states = block.resnets[-1](states, embedding)
        if isinstance(block, CrossAttnUpBlock2D):
            text = unet.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs=inputs.added)
            mask = inputs.mask
            bias = None if mask is None else ((1 - mask.to(sample.dtype)) * -10_000.0).unsqueeze(1)  # as the UNet's
            states = block.attentions[-1](
                states, encoder_hidden_states=text, encoder_attention_mask=bias, return_dict=False
            )[0]
        if unet.conv_norm_out is not None:
            states = unet.conv_act(unet.conv_norm_out(states))
        output: torch.Tensor = unet.conv_out(states)
        return output

    def _keep(self, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        """given: what the last layer takes, the deep features before what skips them."""
        self._here.deep = given[0][:, : -self._unet.config.block_out_channels[0]].clone()
