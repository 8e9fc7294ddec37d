"""A lane that nobody has asked for: it makes a new engine as fast as one that has drawn before.

The first forwards of a UNet and a VAE at a size choose kernels, pack weights and fill allocators' pools, and the first
lane imports what draws it.
"""

import numpy as np

from deployments.engine.checkpoints.configs import Architecture
from deployments.engine.types import Array, Conditioning, DenoiseRequest, PromptEmbedding

_TOKENS = 77  # of a prompt of one chunk
_STEPS = 2  # the second one is as fast as any other


def warm_up_lane(
    checkpoint: str, architecture: Architecture, width: int, height: int
) -> tuple[DenoiseRequest, Conditioning]:
    """A short lane of a size, with guidance, and texts of random numbers for it.

    Args:
        checkpoint: to draw with.
        architecture: of the checkpoint.
        width: in pixels, a multiple of 8.
        height: likewise.
    """
    request = DenoiseRequest(
        lane_id=f"warm-up of {checkpoint}",
        checkpoint=checkpoint,
        seed=0,
        steps=_STEPS,
        guidance_scale=5.0,
        width=width,
        height=height,
        sampler="euler",
    )
    generator = np.random.default_rng(0)
    unet = architecture.unet
    pooled: int | None = None
    if architecture.time_ids:
        of_time_ids = architecture.time_ids * unet["addition_time_embed_dim"]
        pooled = unet["projection_class_embeddings_input_dim"] - of_time_ids

    def text() -> PromptEmbedding:
        return PromptEmbedding(
            _random(generator, _TOKENS, unet["cross_attention_dim"]),
            None if pooled is None else _random(generator, pooled),
        )

    return request, Conditioning(text(), text())


def _random(generator: np.random.Generator, *shape: int) -> Array:
    return generator.standard_normal(shape, dtype=np.float32)
