"""The benchmark of swaps: that it swaps in place, and sees an image that isn't its checkpoint's."""

import asyncio
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.swap import Lanes, measure, parse
from benchmarks.workload import random_conditioning
from deployments.engine.checkpoints.loader import describe_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from tests.deployments.engine.checkpoints.checkpoint_loading import change_unet


@pytest.fixture
def lanes(shallow_sd15: Path, tmp_path: Path) -> Lanes:
    other = shutil.copytree(shallow_sd15, tmp_path / "other")
    change_unet(other, lambda tensors: [tensor.mul_(1.1) for tensor in tensors.values()])
    catalogue = {
        name: CheckpointSpec(family="sd15", source=str(folder)) for name, folder in (("a", shallow_sd15), ("b", other))
    }
    settings = EngineSettings(device="cpu", cpu_threads=1, host_memory_gib=1.0, swap_patience_s=0.0)
    unet = describe_denoiser(catalogue["a"]).unet
    text = random_conditioning(unet["cross_attention_dim"], None, guided=True)
    return Lanes(Engine(settings, catalogue), tuple(catalogue), text, steps=2, size=64)


def test_every_swap_is_in_place_and_every_image_its_checkpoint_s(lanes: Lanes) -> None:
    lanes.engine.start()
    figures = measure(lanes, alone=4, swaps=6)
    lanes.engine.stop()
    assert figures.wrong == 0
    assert figures.images > 6
    assert figures.under_load >= 6
    assert figures.in_place == 1 + figures.alone + figures.under_load  # all but the very first loading
    assert 0 < figures.alone_p50_s <= figures.alone_p99_s


def test_a_wrong_image_is_counted(lanes: Lanes) -> None:
    lanes.engine.start()
    asyncio.run(lanes.image("a"))
    with torch.no_grad():
        lanes.engine._loop.residency["a"].weights.unet.conv_out.weight.mul_(2)
    asyncio.run(lanes.image("a"))
    lanes.engine.stop()
    assert (lanes.images, lanes.wrong) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--checkpoint", "demo-sd15"], "two checkpoints or more, of one family"),
        (["--checkpoint", "demo-sd15", "--checkpoint", "demo-sdxl"], "two checkpoints or more, of one family"),
        (["--random-weights", "sd15", "--alone", "1"], "greater than or equal to 2"),
        (["--random-weights", "sd15", "--swaps", "0"], "greater than or equal to 1"),
        (["--random-weights", "sd15", "--size", "8"], "--size at least 64"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert reason in capsys.readouterr().err
