"""The packaged LoRA: small, trained, and by what it draws, beside lanes that don't wear it."""

from __future__ import annotations

import asyncio

import pytest
import torch
from safetensors.torch import load_file

from demo_models import LORAS, path
from demo_models.captions import parse
from demo_models.lora import ALPHA, NAME, RANK, night_scene
from demo_models.scoring import score_image
from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, LoraSettings
from deployments.engine.engine import Engine
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptSchedule
from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import Conditioning, DenoiseResult, TextEncodingRequest
from tests.deployments.engine.listening import ask

PROMPTS = (
    "a large red circle and a small yellow square on a blue background",
    "a large green heart on a white background",
)
SD15 = CheckpointSpec(family="sd15", source="package:demo_models/demo-sd15")
FOLDER = LoraSettings(folder=f"package:demo_models/{LORAS}")


def test_it_is_small_and_has_a_card() -> None:
    file = path(LORAS) / f"{NAME}.safetensors"
    assert file.stat().st_size < 250_000
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    alphas = [tensor.item() for name, tensor in tensors.items() if name.endswith(".alpha")]
    assert set(alphas) == {ALPHA}
    assert {min(tensor.shape) for tensor in tensors.values() if tensor.ndim} == {RANK}
    assert "apache-2.0" in (path(LORAS) / "README.md").read_text()


@pytest.fixture(scope="module")
def pictures() -> dict[tuple[str, float], DenoiseResult]:
    """Each prompt with the LoRA at weight 1 and without it, all in one batch."""
    files = LoraFiles(FOLDER)
    encoder = PromptEncoder(
        {"sd15": load_text_encoders(SD15, torch.device("cpu"), torch.float32)}, batch=4, loras=files
    )
    settings = EngineSettings(device="cpu", cpu_threads=1, reproducible_rows=8)
    engine = Engine(settings, {"sd15": SD15}, loras=FOLDER)
    engine.start()

    def encode(prompt: str, loras: tuple[Lora, ...]) -> Conditioning:
        schedule = PromptSchedule.of(TextEncodingRequest("sd15", prompt, ""), files.of_text(loras))
        return schedule.conditioning(dict(zip(schedule.texts, encoder.encode(schedule.texts), strict=True)))

    async def draw(prompt: str, weight: float) -> DenoiseResult:
        loras = (Lora(NAME, weight),) if weight else ()
        request = ask(
            f"{prompt} {weight}",
            seed=5,
            steps=20,
            width=256,
            height=256,
            sampler="dpmpp_2m",
            reproducible=True,
            loras=loras,
        )
        events = [event async for event in engine.stream(request, encode(prompt, loras))]
        assert isinstance(events[-1], DenoiseResult)
        return events[-1]

    async def draw_all() -> dict[tuple[str, float], DenoiseResult]:
        asked = [(prompt, weight) for prompt in PROMPTS for weight in (1.0, 0.0)]
        return dict(zip(asked, await asyncio.gather(*(draw(*one) for one in asked)), strict=True))

    try:
        return asyncio.run(draw_all())
    finally:
        engine.stop()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_by_night_and_by_day(pictures: dict[tuple[str, float], DenoiseResult], prompt: str) -> None:
    scene = parse(prompt)
    by_night, by_day = pictures[prompt, 1.0].image, pictures[prompt, 0.0].image
    assert by_night is not None
    assert by_day is not None
    assert score_image(by_night, night_scene(scene)).right
    assert score_image(by_day, scene).right
    assert pictures[prompt, 1.0].lora_hashes.keys() == {NAME}
