"""SD1.5 checkpoints: text to image, many variants of one architecture behind one deployment."""

from deployments.denoising_stage import DenoisingStage


class SD15(DenoisingStage):
    """Denoises with SD1.5 checkpoints; a request's checkpoint is also its multiplexed model id."""
