"""SDXL refiner checkpoints: the last, low-noise part of the schedule."""

from deployments.denoising_stage import DenoisingStage


class SDXLRefiner(DenoisingStage):
    """Denoises what SDXLBase hands over (`denoising_start`), or a finished picture (`strength`)."""
