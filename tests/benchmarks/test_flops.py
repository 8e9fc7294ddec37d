"""FLOPs and parameters of the real architectures: the counts that the floors in docs/performance.md stand on."""

import pytest
import torch

from benchmarks.flops import count_flops
from benchmarks.real_architectures import UNETS, VAES, pooled_channels, random_denoiser, unet_inputs
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.families.family import FamilyName

META = torch.device("meta")


def test_counts_of_sd15() -> None:
    flops = count_flops("sd15", UNETS["sd15"], VAES["sd15"], 512, 512)
    assert flops.unet_row / 1e12 == pytest.approx(0.803, abs=0.001)
    assert flops.vae_decode / 1e12 == pytest.approx(2.515, abs=0.001)
    half = count_flops("sd15", UNETS["sd15"], VAES["sd15"], 256, 512)
    assert 2.0 < flops.vae_decode / half.vae_decode < 2.2  # the middle block's attention grows faster than the pixels


@pytest.mark.parametrize(
    ("family", "millions", "pooled"), [("sd15", 859.5, None), ("sdxl", 2567.5, 1280), ("sdxl-refiner", 2259.5, 1280)]
)
def test_architectures_have_the_published_sizes(family: FamilyName, millions: float, pooled: int | None) -> None:
    weights = random_denoiser(CheckpointSpec(family=family, source="random"), META, torch.float16)
    assert sum(p.numel() for p in weights.unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert sum(p.numel() for p in weights.vae.parameters()) / 1e6 == pytest.approx(83.65, abs=0.01)
    assert weights.unet.dtype == weights.vae.dtype == torch.float16
    assert pooled_channels(weights.unet.config, family) == pooled
    inputs = unet_inputs(weights.unet, family, 3, 16, 8)
    assert weights.unet(**inputs, return_dict=False)[0].shape == (3, 4, 16, 8)
