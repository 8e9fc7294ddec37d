"""The packaged IP-Adapter: small, trained, and by what it draws, beside a lane that is shown nothing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from demo_models import IMAGE_ENCODER, IP_ADAPTERS, path
from demo_models.drawing import Picture, draw
from demo_models.ip_adapter import NAME
from demo_models.scenes import held_out_scenes
from demo_models.scoring import SceneScore, score_image
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.config import ConditioningSettings, EngineSettings, IpAdapterSettings
from deployments.engine.engine import Engine
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptSchedule
from deployments.engine.types import DenoiseResult, Reference, TextEncodingRequest
from tests.deployments.engine.listening import ask

SD15 = CheckpointSpec(family="sd15", source="package:demo_models/demo-sd15")
SIZE = 256
SCENES = held_out_scenes(4, 11)


def test_it_is_small_and_has_a_card() -> None:
    files = [path(IP_ADAPTERS) / f"{NAME}.safetensors", path(IMAGE_ENCODER) / "model.safetensors"]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}
    assert "apache-2.0" in (path(IP_ADAPTERS) / "README.md").read_text()


@pytest.fixture(scope="module")
def scores() -> list[SceneScore]:
    """Of each scene, shown to a lane without a prompt; then of the first by a lane that is shown nothing."""
    texts = PromptEncoder({"sd15": load_text_encoders(SD15, torch.device("cpu"), torch.float32)}, batch=4)
    pictures = ImageEncoder(f"package:demo_models/{IMAGE_ENCODER}", torch.device("cpu"), torch.float32)
    settings = IpAdapterSettings(folder=f"package:demo_models/{IP_ADAPTERS}", resident_mib=16)
    steering = ConditioningSettings(ip_adapters=settings)
    engine = Engine(EngineSettings(device="cpu", cpu_threads=1), {"sd15": SD15}, conditioning=steering)
    engine.start()
    schedule = PromptSchedule.of(TextEncodingRequest("sd15", "", ""))
    wordless = schedule.conditioning(dict(zip(schedule.texts, texts.encode(schedule.texts), strict=True)))

    async def paint(number: int, shown: list[Picture]) -> Picture:
        request = ask(str(number), seed=number, steps=12, width=SIZE, height=SIZE, sampler="dpmpp_2m")
        request = replace(request, references=tuple(Reference(NAME) for _ in shown))
        conditioning = replace(wordless, references=tuple(pictures.projections(shown)) if shown else ())
        events = [event async for event in engine.stream(request, conditioning)]
        assert isinstance(events[-1], DenoiseResult)
        assert events[-1].image is not None
        return events[-1].image

    async def paint_all() -> list[Picture]:
        shown = [[draw(scene, SIZE, SIZE, random.Random(f"tested {scene}"))] for scene in SCENES]
        return await asyncio.gather(*(paint(number, one) for number, one in enumerate([*shown, []])))

    try:
        drawn = asyncio.run(paint_all())
    finally:
        engine.stop()
    return [score_image(picture, scene) for picture, scene in zip(drawn, [*SCENES, SCENES[0]], strict=True)]


def test_what_a_picture_shows_comes_back(scores: list[SceneScore]) -> None:
    assert sum(score.named for score in scores[: len(SCENES)]) >= len(SCENES) - 1


def test_without_it_nothing_does(scores: list[SceneScore]) -> None:
    assert not scores[-1].named
