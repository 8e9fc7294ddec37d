"""Tiny detectors with random weights, as files."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from deployments.engine.detection.folder import metadata_of
from deployments.engine.detection.network import GridNetwork

CLASSES = ("circle", "square")
WIDTHS = (8, 8, 16, 16)
SIDE = 64


def tiny_network(seed: int = 0) -> GridNetwork:
    torch.manual_seed(seed)
    return GridNetwork(WIDTHS, len(CLASSES)).eval().requires_grad_(False)


def write_detector(file: Path, network: GridNetwork, **metadata: str) -> Path:
    """`metadata`: in place of what it says of itself."""
    save_file(network.state_dict(), file, {**metadata_of(CLASSES, SIDE, WIDTHS), **metadata})
    return file


def only_at(network: GridNetwork, bias: float) -> GridNetwork:
    """The network, all of whose cells tell the same: the second class with this logit, edges one cell away."""
    with torch.no_grad():
        network.head.weight.zero_()
        assert network.head.bias is not None
        network.head.bias.copy_(torch.tensor([-9.0, bias, 0.0, 0.0, 0.0, 0.0]))
    return network
