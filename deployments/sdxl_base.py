"""SDXL base checkpoints: text to image, alone or up to the refiner's hand-over."""

from deployments.denoising_stage import DenoisingStage


class SDXLBase(DenoisingStage):
    """Denoises with SDXL base checkpoints; `denoising_end` < 1 hands noisy latents over."""
