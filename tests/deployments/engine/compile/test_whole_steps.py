"""A step as one graph: what it computes for any mixture of lanes, and engines that take such steps."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.engine.batch import Batch, BatchKey
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.compile.unet_step import UnetStep
from deployments.engine.compile.whole_steps import step_inputs
from deployments.engine.conditioning.registry import Conditioners
from deployments.engine.config import ConditioningSettings, EngineSettings
from deployments.engine.denoising.batch_inputs import BatchLayouts
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.device import Device
from deployments.engine.engine import Engine
from deployments.engine.errors import NumericalFailure
from deployments.engine.families.family import FamilyName
from deployments.engine.lanes.lane import Lane, Ticket
from deployments.engine.lanes.prepare import prepare_lane
from deployments.engine.row_threads import RowThreads
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from deployments.engine.vae.autoencoder import Vae
from deployments.engine.vae.previews import fit_preview_map
from tests.deployments.engine.checkpoints.checkpoint_loading import CPU, load
from tests.deployments.engine.listening import ask
from tests.tiny_checkpoints import write_shallow_sd15

Encode = Callable[..., Conditioning]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[16:48, 8:40] = 255

MIXTURE: list[dict[str, Any]] = [
    {"sampler": "unipc", "steps": 7},
    {"sampler": "euler_a", "guidance_scale": 1.0},
    {"sampler": "dpmpp_2m_sde_karras", "guidance_rescale": 0.7},
    {"sampler": "pndm", "steps": 5, "guidance_scale": 9.0},
    {"sampler": "heun", "steps": 3},
    {"sampler": "lms", "steps": 6, "guidance_scale": 1.0},
]
"""With three or four rows of a bucket left over."""


def lane_of(denoiser: Denoiser, settings: EngineSettings, text: Conditioning, **changes: Any) -> Lane:
    request = ask(**changes)
    key = BatchKey(request.checkpoint, request.height // 8, request.width // 8, text.tokens, pinned=False)
    ticket = Ticket(request, text, key, 1, time.monotonic(), lambda event: None)
    device = Device(CPU, torch.float32, RowThreads(1))
    return prepare_lane(ticket, denoiser, settings, Conditioners(ConditioningSettings(), device, settings))


@pytest.mark.parametrize(
    ("family", "checkpoint", "also"),
    [
        ("sd15", "tiny_sd15", {}),
        ("sd15", "tiny_sd15_inpainting", {"image": PICTURE, "mask": MASK}),
        ("sdxl", "tiny_sdxl", {}),
    ],
)
def test_a_whole_step_is_the_steps_that_lanes_take(
    family: FamilyName,
    checkpoint: str,
    also: dict[str, Any],
    request: pytest.FixtureRequest,
    encode_sd15: Encode,
    encode_sdxl: Encode,
) -> None:
    settings = EngineSettings(device="cpu", channels_last=False)
    with torch.no_grad():
        weights = load(family, request.getfixturevalue(checkpoint))
        unet = weights.unet
        denoiser = Denoiser(weights, fit_preview_map(Vae.of(weights)), settings, RowThreads(1))
        layouts = BatchLayouts(denoiser.adapted, CPU, torch.float32, None)
        encode = encode_sd15 if family == "sd15" else encode_sdxl
        lanes = []
        for seed, of_lane in enumerate(MIXTURE):
            text = encode("a red circle", None if of_lane.get("guidance_scale") == 1.0 else "")
            lanes.append(lane_of(denoiser, settings, text, seed=seed, **also, **of_lane))
        steps = 0
        while lanes:
            batch = Batch(tuple(lanes), bucket=16)
            inputs = step_inputs(layouts.of(batch))
            assert inputs is not None
            found_outputs, found_latents = UnetStep(unet, channels_last=False)(*inputs.all)
            outputs, latents = denoiser.step(batch)
            for found, wanted in ((found_outputs, outputs), (found_latents, latents)):
                torch.testing.assert_close(found[: len(lanes)], wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
            for index, lane in enumerate(lanes):
                lane.advance(latents[index], outputs[index], latents[index])
            lanes = [lane for lane in lanes if not lane.finished]
            steps += 1
        assert steps == 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointSpec:
    return CheckpointSpec(family="sd15", source=str(write_shallow_sd15(tmp_path_factory.mktemp("shallow"))))


def test_an_engine_takes_them_compiled_and_decodes_so(
    checkpoint: CheckpointSpec, encode_sd15: Encode, run_together: RunTogether, tmp_path: Path
) -> None:
    text = encode_sd15("a red circle")

    def engine_with(compiling: dict[str, Any] | None) -> Engine:
        settings = {"device": "cpu", "cpu_threads": 1, "vae": {"dtype": "bfloat16"}, "compile": compiling}
        engine = Engine(EngineSettings.model_validate(settings), {"sd15": checkpoint})
        engine.start()
        return engine

    def drawn(engine: Engine, **changes: Any) -> np.ndarray:
        (result,) = run_together(engine, [(ask(sampler="unipc", guidance_rescale=0.5, **changes), text)])
        assert result.image is not None
        return result.image.astype(int)

    async def settled(engine: Engine) -> None:
        async with asyncio.timeout(500):
            while engine.stats().compiling:  # noqa: ASYNC110  # a process's end
                await asyncio.sleep(0.2)

    plain = engine_with(None)
    wanted, pinned = drawn(plain), drawn(plain, reproducible=True)
    plain.stop()
    parts = {"graph": "step", "decode": "always"}
    compiled = engine_with({**parts, "folder": str(tmp_path / "graphs"), "after_steps": 1, "most": 2, "niceness": 0})
    drawn(compiled)
    asyncio.run(settled(compiled))
    before = compiled.stats()
    found = drawn(compiled)
    after = compiled.stats()
    assert after.compiled == ("decode, 1 x 64 x 64", "whole step, 2 x 64 x 64, 77 tokens")
    assert after.compile_failures == 0
    assert after.compiled_steps_total - before.compiled_steps_total == 6
    assert 0 < np.abs(found - wanted).max() <= 4, "another order of sums, and of roundings to bfloat16"
    assert np.array_equal(drawn(compiled, reproducible=True), pinned)
    # a decode in float32, like a canary's, leaves the VAE's weights where the compiled one reads them
    weights = compiled._loop.residency["sd15"].weights
    (failure,) = Vae.of(weights).decode(torch.full((1, 4, 8, 8), torch.nan))
    assert isinstance(failure, NumericalFailure)
    assert np.array_equal(drawn(compiled), found)
    compiled.stop()
