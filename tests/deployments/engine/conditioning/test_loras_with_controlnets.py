"""LoRAs and ControlNets on the same lanes, against diffusers' ControlNet pipelines with the LoRA in their weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import ConditioningSettings, ControlnetSettings, EngineSettings, LoraSettings
from deployments.engine.engine import Engine
from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import Conditioning, Control, DenoiseRequest, DenoiseResult, Pixels
from tests.controlnets import random_controlnet, write_controlnet
from tests.deployments.engine.denoising.parity import assert_close, encode, reference, seeded
from tests.deployments.engine.listening import ask
from tests.loras import UNET_LAYERS, Updates, merged, random_updates, write_kohya

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

SIZE = 64
STYLE = (Lora("style", 0.8),)
BOTH = (Lora("style", -0.5), Lora("detail", 1.0))


def picture(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)


EDGES = (Control("edges", picture(1), scale=0.9),)


@pytest.fixture(scope="module")
def updates(sd15_pipeline: Any, sdxl_pipeline: Any) -> dict[str, Updates]:
    return {
        "style": random_updates(sd15_pipeline.unet, UNET_LAYERS, seed=1),
        "detail": random_updates(sd15_pipeline.unet, UNET_LAYERS, seed=2, rank=1),
        "xl-style": random_updates(sdxl_pipeline.unet, UNET_LAYERS, seed=3),
    }


@pytest.fixture(scope="module")
def nets(sd15_pipeline: Any, sdxl_pipeline: Any) -> dict[str, ControlNetModel]:
    return {
        "edges": random_controlnet(sd15_pipeline.unet, seed=1),
        "xl-edges": random_controlnet(sdxl_pipeline.unet, seed=2),
    }


@pytest.fixture(scope="module")
def engine(
    tiny_sd15: Path,
    tiny_sdxl: Path,
    updates: dict[str, Updates],
    nets: dict[str, ControlNetModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "loras").mkdir()
    for name, of_lora in updates.items():
        write_kohya(folder / "loras" / f"{name}.safetensors", {"unet": of_lora})
    for name, net in nets.items():
        write_controlnet(folder / "controlnets" / name, net)
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
    }
    settings = EngineSettings(device="cpu", cpu_threads=2, resident_checkpoints=2, reproducible_rows=8)
    started = Engine(
        settings,
        catalogue,
        loras=LoraSettings(folder=str(folder / "loras")),
        conditioning=ConditioningSettings(ControlnetSettings(folder=str(folder / "controlnets"), resident_mib=16)),
    )
    started.start()
    yield started
    started.stop()


def lane(lane_id: str, loras: tuple[Lora, ...] = (), controls: tuple[Control, ...] = (), **more: Any) -> DenoiseRequest:
    return ask(lane_id=lane_id, output="latents", reproducible=True, loras=loras, controls=controls, **more)


class Diffusers:
    """Its own pipelines, with the ControlNets beside a UNet that has the LoRAs in its weights."""

    def __init__(self, pipeline: Any, updates: dict[str, Updates], nets: dict[str, ControlNetModel]) -> None:
        self.pipeline, self.updates, self.nets = pipeline, updates, nets

    def latents(self, request: DenoiseRequest, kind: Any, **options: Any) -> torch.Tensor:
        unet = merged(self.pipeline.unet, *((self.updates[lora.name], lora.weight) for lora in request.loras))
        parts = {**self.pipeline.components, "unet": unet}
        told: dict[str, Any] = {"height": SIZE, "width": SIZE}
        if request.controls:
            shown = [Image.fromarray(control.image) for control in request.controls]
            told |= {
                "image": shown,
                "controlnet_conditioning_scale": [control.scale for control in request.controls],
                "control_guidance_start": [control.start for control in request.controls],
                "control_guidance_end": [control.end for control in request.controls],
            }
            if request.image is not None:
                told |= {"image": Image.fromarray(request.image), "control_image": shown, "strength": request.strength}
            made = kind(**parts, controlnet=[self.nets[control.name] for control in request.controls], **options)
        else:
            made = type(self.pipeline)(**parts, **options)
        made.set_progress_bar_config(disable=True)
        return reference(made, request, seeded(request), **told)


def check(
    engine: Engine,
    run_together: RunTogether,
    diffusers: Diffusers,
    work: list[DenoiseRequest],
    kind: Any,
    **options: Any,
) -> None:
    """Alone and in one batch as in diffusers, and in both to the same bits."""
    encoded = [(request, encode(diffusers.pipeline, request)) for request in work]
    of_kind = [StableDiffusionControlNetImg2ImgPipeline if one.image is not None else kind for one in work]
    wanted = {
        request.lane_id: diffusers.latents(request, cls, **options) for request, cls in zip(work, of_kind, strict=True)
    }
    alone = [run_together(engine, [item])[0] for item in encoded]
    together = run_together(engine, encoded)
    assert_close(alone + together, wanted)
    for one, other in zip(alone, together, strict=True):
        assert one.latents is not None
        assert other.latents is not None
        assert one.latents.tobytes() == other.latents.tobytes(), one.lane_id


def test_alone_and_among_lanes_with_other_adapters(
    engine: Engine,
    run_together: RunTogether,
    sd15_pipeline: Any,
    updates: dict[str, Updates],
    nets: dict[str, ControlNetModel],
) -> None:
    part = (Control("edges", picture(2), scale=1.4, start=0.2, end=0.8),)
    work = [
        lane("both", STYLE, EDGES, seed=20, steps=3),
        lane("two and a part", BOTH, part, seed=21, sampler="dpmpp_2m", steps=4),
        lane("without guidance", STYLE, EDGES, seed=22, guidance_scale=1.0, sampler="lcm", steps=3),
        lane("control", (), EDGES, seed=23, guidance_scale=1.0, sampler="euler", steps=2),
        lane("from an image", BOTH, EDGES, seed=24, image=picture(7), strength=0.5, sampler="ddim"),
    ]
    engine.preload("sd15").result()
    unet = engine._loop.residency["sd15"].weights.unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    versions = [tensor._version for tensor in unet.parameters()]
    diffusers = Diffusers(sd15_pipeline, updates, nets)
    check(engine, run_together, diffusers, work, StableDiffusionControlNetPipeline, requires_safety_checker=False)
    assert engine._loop.residency["sd15"].weights.unet is unet
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert [tensor._version for tensor in unet.parameters()] == versions
    assert not any(module._forward_hooks for module in unet.modules())


def test_sdxl(
    engine: Engine,
    run_together: RunTogether,
    sdxl_pipeline: Any,
    updates: dict[str, Updates],
    nets: dict[str, ControlNetModel],
) -> None:
    control = (Control("xl-edges", picture(3), end=0.8),)
    work = [
        lane("both", (Lora("xl-style", 0.7),), control, checkpoint="sdxl", seed=21, steps=3),
        lane("lora", (Lora("xl-style", 1.0),), checkpoint="sdxl", seed=22, guidance_scale=1.0, steps=2),
    ]
    diffusers = Diffusers(sdxl_pipeline, updates, nets)
    check(engine, run_together, diffusers, work, StableDiffusionXLControlNetPipeline, add_watermarker=False)
