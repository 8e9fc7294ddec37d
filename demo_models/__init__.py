"""Miniature Stable Diffusion checkpoints that draw coloured shapes, and the code that trained them.

Asking where a checkpoint lies loads no PyTorch.
"""

from __future__ import annotations

from pathlib import Path

NAMES = (
    "demo-sd15",
    "demo-sd15-outline",
    "demo-sd15-stripes",
    "demo-sdxl",
    "demo-sdxl-refiner",
    "demo-nsfw",
)


LORAS = "demo-loras"
"""The folder of the LoRAs, which are single files."""

CONTROLNETS = "demo-controlnets"
"""The folder of the ControlNets, each of which is a folder."""

DETECTORS = "demo-detectors"
"""The folder of the detectors, which are single files."""

IP_ADAPTERS = "demo-ip-adapters"
"""The folder of the IP-Adapters, which are single files."""

IMAGE_ENCODER = "demo-image-encoder"
"""The folder of the image encoder that they need."""


def path(name: str) -> Path:
    """The folder of a packaged checkpoint, of the LoRAs, ControlNets, detectors or IP-Adapters, or their encoder's."""
    if name not in (*NAMES, LORAS, CONTROLNETS, DETECTORS, IP_ADAPTERS, IMAGE_ENCODER):
        raise ValueError(f"{name!r} is not one of {', '.join(NAMES)}")
    return Path(__file__).parent / name
