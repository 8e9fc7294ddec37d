"""SD 2.x against diffusers' own pipeline: texts, latents alone and among unlike lanes, single files, refusals.

Every sampler is run on what differs from SD 1.5: a UNet that predicts v.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from deployments.engine.checkpoints.loader import load_denoiser, load_text_encoders, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.errors import CheckpointError
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptText
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from tests.deployments.engine.denoising.parity import assert_close, prompts_for, reference, seeded
from tests.deployments.engine.samplers.diffusers_schedulers import SCHEDULERS
from tests.ldm_export import export_ldm
from tests.tiny_checkpoints import PUBLISHED_LAYERS, write_tiny_sd2

CPU = torch.device("cpu")
SIZE = 64
Prediction = Literal["v_prediction", "epsilon"]
PREDICTIONS: tuple[Prediction, ...] = ("v_prediction", "epsilon")
SOME_SAMPLERS = ("ddim", "euler_a", "dpmpp_2m", "heun")
Work = tuple[DenoiseRequest, Conditioning]
RunTogether = Callable[[Engine, list[Work]], list[DenoiseResult]]


@pytest.fixture(scope="module")
def folders(tiny_sd2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = write_tiny_sd2(tmp_path_factory.mktemp("checkpoints") / "tiny-sd2-base", prediction_type="epsilon")
    return {"v_prediction": tiny_sd2, "epsilon": base}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = {
        name: StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        for name, folder in folders.items()
    }
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def encoder(folders: dict[str, Path]) -> PromptEncoder:
    return PromptEncoder(
        {name: load_text_encoders(spec_of(folder), CPU, torch.float32) for name, folder in folders.items()}, batch=4
    )


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path], tiny_sd15: Path) -> Iterator[Engine]:
    catalogue = {name: spec_of(folder) for name, folder in folders.items()}
    catalogue["sd15"] = CheckpointSpec(family="sd15", source=str(tiny_sd15))
    settings = EngineSettings(
        device="cpu",
        dtype="float32",
        cpu_threads=1,
        resident_checkpoints=len(catalogue),
        max_rows=16,
        reproducible_rows=16,
    )
    engine = Engine(settings, catalogue)
    engine.start()
    yield engine
    engine.stop()


def spec_of(source: Path, config: Path | None = None) -> CheckpointSpec:
    return CheckpointSpec(family="sd2", source=str(source), config=None if config is None else str(config))


def requests_for(checkpoint: str, samplers: Iterable[str]) -> list[DenoiseRequest]:
    """A lane for every sampler, unlike in steps and guidance."""
    return [
        DenoiseRequest(
            lane_id=f"{checkpoint} {sampler}",
            checkpoint=checkpoint,
            seed=2000 + index,
            steps=(6, 5, 8)[index % 3],
            guidance_scale=(7.5, 1.0, 3.0)[index // 2 % 3],
            width=SIZE,
            height=SIZE,
            sampler=sampler,
            output="latents",
        )
        for index, sampler in enumerate(samplers)
    ]


def encode(encoder: PromptEncoder, request: DenoiseRequest) -> Conditioning:
    prompt, negative = prompts_for(request)
    texts = [PromptText(request.checkpoint, text) for text in (prompt, negative) if text is not None]
    positive, *rest = encoder.encode(texts)
    return Conditioning(positive, rest[0] if rest else None)


def test_texts(encoder: PromptEncoder, pipelines: dict[str, Any]) -> None:
    for text in ("a large red circle", "", "Ein größer Baum, 日本 🙂"):
        (ours,) = encoder.encode([PromptText("epsilon", text)])
        theirs, _ = pipelines["epsilon"].encode_prompt(text, CPU, 1, False)
        wanted = theirs[0].detach().numpy()
        np.testing.assert_allclose(ours.hidden_states, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
        assert ours.pooled is None


@pytest.mark.parametrize(("prediction", "samplers"), [("v_prediction", tuple(SCHEDULERS)), ("epsilon", SOME_SAMPLERS)])
def test_latents_among_unlike_lanes(
    engine: Engine,
    run_together: RunTogether,
    encoder: PromptEncoder,
    pipelines: dict[str, Any],
    prediction: Prediction,
    samplers: tuple[str, ...],
) -> None:
    pipeline = pipelines[prediction]
    assert pipeline.scheduler.config.prediction_type == prediction
    work = [(request, encode(encoder, request)) for request in requests_for(prediction, samplers)]
    expected = {
        request.lane_id: reference(pipeline, request, seeded(request), height=SIZE, width=SIZE) for request, _ in work
    }
    assert_close([run_together(engine, [item])[0] for item in work if item[0].sampler in SOME_SAMPLERS], expected)
    before = engine.stats()
    together = run_together(engine, [(dataclasses.replace(request, reproducible=True), text) for request, text in work])
    after = engine.stats()
    assert after.lane_steps_total - before.lane_steps_total > 2 * (after.steps_total - before.steps_total)
    assert_close(together, expected)


def test_beside_another_family(
    engine: Engine,
    run_together: RunTogether,
    encoder: PromptEncoder,
    pipelines: dict[str, Any],
    sd15_pipeline: Any,
    encode_sd15: Callable[[str, str | None], Conditioning],
) -> None:
    """One stage runs both."""
    requests = [request for name in (*PREDICTIONS, "sd15") for request in requests_for(name, SOME_SAMPLERS[:3])]
    work = [
        (
            request,
            encode_sd15(*prompts_for(request)) if request.checkpoint == "sd15" else encode(encoder, request),
        )
        for request in requests
    ]
    expected = {
        request.lane_id: reference(
            {**pipelines, "sd15": sd15_pipeline}[request.checkpoint],
            request,
            seeded(request),
            height=SIZE,
            width=SIZE,
        )
        for request in requests
    }
    assert_close(run_together(engine, work), expected)


def test_single_file_gives_what_its_folder_gives(tmp_path: Path) -> None:
    source = write_tiny_sd2(tmp_path / "tiny-sd2", layers=PUBLISHED_LAYERS)
    path = export_ldm(source, tmp_path / "model.safetensors")
    file, folder = spec_of(path, config=source), spec_of(source)
    read, wanted = (load_denoiser(spec, CPU, torch.float32) for spec in (file, folder))
    models: list[tuple[torch.nn.Module, torch.nn.Module]] = [(read.unet, wanted.unet), (read.vae, wanted.vae)]
    (encoder,), (other,) = (load_text_encoders(spec, CPU, torch.float32).encoders for spec in (file, folder))
    for model, original in [*models, (encoder.model, other.model)]:
        tensors, expected = model.state_dict(), original.state_dict()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert read.scheduler_config["prediction_type"] == "v_prediction"


def test_single_file_beside_a_folder_without_a_scheduler(tiny_sd2: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sd2, tmp_path / "model.safetensors")
    described = tmp_path / "described"
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        (described / name).mkdir(parents=True)
        for file in (tiny_sd2 / name).glob("*.json"):
            (described / name / file.name).write_bytes(file.read_bytes())
    scheduler = read_denoiser(spec_of(path, config=described)).scheduler_config
    assert (scheduler["_class_name"], scheduler["prediction_type"]) == ("DDIMScheduler", "v_prediction")


def test_single_file_of_sd15(tiny_sd15: Path, tiny_sd2: Path, tmp_path: Path) -> None:
    path = export_ldm(tiny_sd15, tmp_path / "15.safetensors")
    with pytest.raises(CheckpointError, match=r"15.safetensors: expected tensors named cond_stage_model\.model\."):
        load_text_encoders(spec_of(path, config=tiny_sd2), CPU, torch.float32)


def test_sd15_is_refused(tiny_sd15: Path) -> None:
    with pytest.raises(CheckpointError, match="expected use_linear_projection True for family sd2, found False"):
        load_denoiser(spec_of(tiny_sd15), CPU, torch.float32)
