"""Checkpoints without a refiner (SD1.5): text to image, many variants of one architecture behind one deployment."""

from deployments.denoising_stage import DenoisingStage


class SD15(DenoisingStage):
    """Denoises what no refiner takes over; a request's checkpoint is also its multiplexed model id."""
