"""The packaged ControlNet: small, trained, and by what it draws, beside a lane that it doesn't steer."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from safetensors.torch import load_file

from demo_models import CONTROLNETS, path
from demo_models.controlnet import NAME, THRESHOLDS, edges, shapeless
from demo_models.drawing import draw
from demo_models.scenes import Scene, SceneObject
from demo_models.scoring import score_image
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import ConditioningSettings, ControlnetSettings, EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptSchedule
from deployments.engine.types import Conditioning, Control, DenoiseResult, TextEncodingRequest
from serve_app.images.preprocessors import canny
from serve_app.schemas.generation_request import ControlnetRequest
from tests.deployments.engine.listening import ask

SD15 = CheckpointSpec(family="sd15", source="package:demo_models/demo-sd15")
SIZE = 256
SCENES = (
    Scene("blue", (SceneObject("star", "red", "large"),)),
    Scene("white", (SceneObject("cross", "green", "large"),)),
)


def outlines(scene: Scene) -> Control:
    return Control(NAME, edges(draw(scene, SIZE, SIZE, random.Random(1))))


def test_it_is_small_and_has_a_card() -> None:
    file = path(CONTROLNETS) / NAME / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_size < 3_000_000
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    assert "apache-2.0" in (path(CONTROLNETS) / "README.md").read_text()


def test_the_service_makes_the_edges_that_it_was_trained_on() -> None:
    picture = draw(SCENES[0], SIZE, SIZE, random.Random(1))
    fields = ControlnetRequest.model_fields
    assert (fields["low"].default, fields["high"].default) == THRESHOLDS
    assert (canny(picture, *THRESHOLDS) == edges(picture)).all()


@pytest.fixture(scope="module")
def pictures() -> list[DenoiseResult]:
    """Each scene by its outlines and colours, then the first one by its colours alone; all in one batch."""
    encoder = PromptEncoder({"sd15": load_text_encoders(SD15, torch.device("cpu"), torch.float32)}, batch=4)
    settings = EngineSettings(device="cpu", cpu_threads=1, reproducible_rows=8)
    folder = ControlnetSettings(folder=f"package:demo_models/{CONTROLNETS}", resident_mib=16)
    engine = Engine(settings, {"sd15": SD15}, conditioning=ConditioningSettings(folder))
    engine.start()

    def encode(prompt: str) -> Conditioning:
        schedule = PromptSchedule.of(TextEncodingRequest("sd15", prompt, ""), ())
        return schedule.conditioning(dict(zip(schedule.texts, encoder.encode(schedule.texts), strict=True)))

    async def paint(number: int, scene: Scene, controls: tuple[Control, ...]) -> DenoiseResult:
        request = ask(
            str(number),
            seed=5,
            steps=20,
            width=SIZE,
            height=SIZE,
            sampler="dpmpp_2m",
            reproducible=True,
            controls=controls,
        )
        prompt = shapeless(scene, random.Random(1))
        events = [event async for event in engine.stream(request, encode(prompt))]
        assert isinstance(events[-1], DenoiseResult)
        return events[-1]

    async def paint_all() -> list[DenoiseResult]:
        asked = [*((scene, (outlines(scene),)) for scene in SCENES), (SCENES[0], ())]
        return await asyncio.gather(*(paint(number, *one) for number, one in enumerate(asked)))

    try:
        return asyncio.run(paint_all())
    finally:
        engine.stop()


@pytest.mark.parametrize("number", range(len(SCENES)))
def test_outlines_decide_where_words_don_t(pictures: list[DenoiseResult], number: int) -> None:
    image = pictures[number].image
    assert image is not None
    assert score_image(image, SCENES[number]).exact
    assert pictures[number].conditioning_hashes["controls"].keys() == {NAME}


def test_without_them_the_words_leave_it_open(pictures: list[DenoiseResult]) -> None:
    image = pictures[-1].image
    assert image is not None
    assert not score_image(image, SCENES[0]).right
