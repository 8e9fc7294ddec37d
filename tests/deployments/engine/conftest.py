"""Engines on the tiny checkpoints, text embeddings made by diffusers' own pipelines, and places to damage things in."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, PromptEmbedding

Encode = Callable[[str, str | None], Conditioning]
MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine(
    tiny_sd15: Path, tiny_sd15_inpainting: Path, tiny_sdxl: Path, tiny_sdxl_refiner: Path
) -> Iterator[MakeEngine]:
    """make_engine(**settings): a started engine that knows the tiny checkpoints; stopped at the test's end."""
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "sd15-twin": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "inpainting": CheckpointSpec(family="sd15", source=str(tiny_sd15_inpainting)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
        "refiner": CheckpointSpec(family="sdxl-refiner", source=str(tiny_sdxl_refiner)),
    }
    engines: list[Engine] = []

    def make(**settings: object) -> Engine:
        chosen = {"device": "cpu", "cpu_threads": 1, "resident_checkpoints": 3, "progress_interval_s": 0.0}
        engine = Engine(EngineSettings.model_validate(chosen | settings), catalogue)
        engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="session")
def sd15_pipeline(tiny_sd15: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_sd15, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def sdxl_pipeline(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def encode_sd15(sd15_pipeline: StableDiffusionPipeline) -> Encode:
    def encode_one(text: str) -> PromptEmbedding:
        hidden, _ = sd15_pipeline.encode_prompt(text, "cpu", 1, False)
        return PromptEmbedding(hidden[0].detach().numpy(), empty=text == "")

    def encode(prompt: str, negative: str | None = "") -> Conditioning:
        return Conditioning(encode_one(prompt), None if negative is None else encode_one(negative))

    return encode


@pytest.fixture(scope="session")
def encode_sdxl(sdxl_pipeline: StableDiffusionXLPipeline) -> Encode:
    def encode_one(text: str) -> PromptEmbedding:
        hidden, _, pooled, _ = sdxl_pipeline.encode_prompt(text, do_classifier_free_guidance=False)
        return PromptEmbedding(hidden[0].detach().numpy(), pooled[0].detach().numpy(), empty=text == "")

    def encode(prompt: str, negative: str | None = "") -> Conditioning:
        return Conditioning(encode_one(prompt), None if negative is None else encode_one(negative))

    return encode


async def finish(engine: Engine, request: DenoiseRequest, conditioning: Conditioning) -> DenoiseResult:
    """Read a lane's stream to its end."""
    result: DenoiseResult | None = None
    async for event in engine.stream(request, conditioning):
        if isinstance(event, DenoiseResult):
            result = event
    assert result is not None
    return result


Work = tuple[DenoiseRequest, Conditioning]


@pytest.fixture
def run_together() -> Callable[[Engine, list[Work]], list[DenoiseResult]]:
    """run_together(engine, [(request, conditioning), ...]): all at once, results in the same order."""

    def run(engine: Engine, work: list[Work]) -> list[DenoiseResult]:
        async def all_of_them() -> list[DenoiseResult]:
            return list(await asyncio.gather(*(finish(engine, *item) for item in work)))

        return asyncio.run(all_of_them())

    return run


@pytest.fixture
def copy(tiny_sd15: Path, tmp_path: Path) -> Path:
    """A tiny SD1.5 to damage."""
    return shutil.copytree(tiny_sd15, tmp_path / "copy")


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
