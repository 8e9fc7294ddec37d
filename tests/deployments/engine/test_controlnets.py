"""ControlNets in the engine against diffusers' own pipelines, alone and among unlike lanes; others aren't disturbed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image

from deployments.engine.checkpoint_spec import CheckpointSpec
from deployments.engine.engine import Engine
from deployments.engine.request import Conditioning, Control, DenoiseRequest, DenoiseResult, Pixels
from deployments.engine.settings import ControlnetSettings, EngineSettings
from tests.controlnets import random_controlnet, write_controlnet
from tests.deployments.engine.listening import ask
from tests.deployments.engine.parity import assert_close, encode, reference, seeded

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

SIZE = 64


def picture(seed: int, size: int = SIZE) -> Pixels:
    blocks = np.random.default_rng(seed).integers(0, 256, (size // 8, size // 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture(scope="module")
def nets(sd15_pipeline: Any, sdxl_pipeline: Any) -> dict[str, ControlNetModel]:
    """What lies in the folder, by name."""
    return {
        "edges": random_controlnet(sd15_pipeline.unet, seed=1),
        "pose": random_controlnet(sd15_pipeline.unet, seed=2),
        "xl": random_controlnet(sdxl_pipeline.unet, seed=3),
    }


@pytest.fixture(scope="module")
def folder(nets: dict[str, ControlNetModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("controlnets")
    for name, net in nets.items():
        write_controlnet(made / name, net)
    return made


@pytest.fixture(scope="module")
def engine(tiny_sd15: Path, tiny_sd15_inpainting: Path, tiny_sdxl: Path, folder: Path) -> Iterator[Engine]:
    started = start(tiny_sd15, tiny_sd15_inpainting, tiny_sdxl, folder)
    yield started
    started.stop()


def start(sd15: Path, inpainting: Path, sdxl: Path, folder: Path, resident_mib: int = 16) -> Engine:
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(sd15)),
        "inpainting": CheckpointSpec(family="sd15", source=str(inpainting)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(sdxl)),
    }
    settings = EngineSettings(device="cpu", cpu_threads=2, resident_checkpoints=3, reproducible_rows=16)
    engine = Engine(settings, catalogue, controlnets=ControlnetSettings(folder=str(folder), resident_mib=resident_mib))
    engine.start()
    return engine


def steered(*controls: Control, **changes: Any) -> DenoiseRequest:
    return ask(output="latents", reproducible=True, controls=controls, **changes)


STEERED: list[tuple[Control, ...]] = [
    (Control("edges", picture(1)),),
    (Control("edges", picture(2), scale=0.6, start=0.3, end=0.8),),
    (),
    (Control("edges", picture(3), scale=1.5, end=0.5), Control("pose", picture(4), scale=0.8, start=0.2)),
    (Control("pose", picture(5)),),
]


def pictured(controls: tuple[Control, ...], nets: dict[str, ControlNetModel]) -> dict[str, Any]:
    """What diffusers' pipelines are told of the same."""
    images = [Image.fromarray(control.image) for control in controls]
    return {
        "controlnet_conditioning_scale": [control.scale for control in controls],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
        "image": images,
    }


def with_controlnets(pipeline_class: Any, pipeline: Any, nets: list[ControlNetModel], **options: Any) -> Any:
    made = pipeline_class(**pipeline.components, controlnet=nets, **options)
    made.set_progress_bar_config(disable=True)
    return made


def expected(
    request: DenoiseRequest, pipeline: Any, nets: dict[str, ControlNetModel], kind: Any, **options: Any
) -> torch.Tensor:
    size = {"height": request.height, "width": request.width}
    if not request.controls:
        return reference(pipeline, request, seeded(request), **size)
    made = with_controlnets(kind, pipeline, [nets[control.name] for control in request.controls], **options)
    return reference(made, request, seeded(request), **pictured(request.controls, nets), **size)


def test_alone_and_in_one_batch(
    engine: Engine, run_together: RunTogether, nets: dict[str, ControlNetModel], sd15_pipeline: Any
) -> None:
    samplers = ("euler", "pndm", "dpmpp_2m", "heun", "ddim")
    requests = [
        steered(*controls, lane_id=str(n), seed=20 + n, sampler=samplers[n], guidance_scale=(5.0, 1.0, 7.5)[n % 3])
        for n, controls in enumerate(STEERED)
    ]
    wanted = {
        request.lane_id: expected(
            request, sd15_pipeline, nets, StableDiffusionControlNetPipeline, requires_safety_checker=False
        )
        for request in requests
    }
    plain = reference(sd15_pipeline, requests[0], seeded(requests[0]), height=SIZE, width=SIZE)
    assert (plain - wanted["0"]).abs().max() > 0.1  # it makes a difference
    work = [(request, encode(sd15_pipeline, request)) for request in requests]
    before = engine.stats()
    alone = [run_together(engine, [item])[0] for item in work]
    middle = engine.stats()
    together = run_together(engine, work)
    after = engine.stats()
    assert_close(alone + together, wanted)
    # they shared their forwards
    assert after.steps_total - middle.steps_total < (middle.steps_total - before.steps_total) / 2
    for one, other in zip(alone, together, strict=True):
        assert one.latents is not None
        assert other.latents is not None
        assert one.latents.tobytes() == other.latents.tobytes()
    assert together[3].controlnet_hashes.keys() == {"edges", "pose"}
    assert together[2].controlnet_hashes == {}


def test_sdxl(engine: Engine, run_together: RunTogether, nets: dict[str, ControlNetModel], sdxl_pipeline: Any) -> None:
    requests = [
        steered(Control("xl", picture(1), scale=0.9, end=0.7), lane_id="0", checkpoint="sdxl", seed=21),
        steered(lane_id="1", checkpoint="sdxl", seed=20, guidance_scale=1.0),
    ]
    wanted = {
        request.lane_id: expected(
            request, sdxl_pipeline, nets, StableDiffusionXLControlNetPipeline, add_watermarker=False
        )
        for request in requests
    }
    work = [(request, encode(sdxl_pipeline, request)) for request in requests]
    alone = [run_together(engine, [item])[0] for item in work]
    assert_close(alone + run_together(engine, work), wanted)
