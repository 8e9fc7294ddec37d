"""VAEs that requests name, against diffusers' pipelines with them put in; others aren't disturbed."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.loader import describe_denoiser, load_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import ConditioningSettings, EngineSettings, VaesSettings
from deployments.engine.device import Device
from deployments.engine.engine import Engine
from deployments.engine.errors import DoesNotFit, StateRefused, VaeRefused
from deployments.engine.memory.budget import MemoryBudget
from deployments.engine.memory.plan import MemoryPlan
from deployments.engine.row_threads import RowThreads
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Pixels, Progress
from deployments.engine.vae.folder import VaeFinder
from deployments.engine.vae.requested import RequestedVaes
from tests.deployments.engine.conftest import Encode
from tests.deployments.engine.denoising.parity import encode, reference, seeded
from tests.deployments.engine.listening import Listener, ask
from tests.vaes import random_vae, write_vaes

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

SIZE = 64
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
MASK = np.repeat([[0, 255]], SIZE, axis=0).repeat(SIZE // 2, axis=1).astype(np.uint8)


@pytest.fixture(scope="module")
def vaes(sd15_pipeline: Any, sdxl_pipeline: Any) -> dict[str, AutoencoderKL]:
    """What lies in the folder, by name."""
    return {
        "soft": random_vae(sd15_pipeline.vae, 1, force_upcast=False),
        "file": random_vae(sd15_pipeline.vae, 2),
        "xl": random_vae(sdxl_pipeline.vae, 3),
    }


@pytest.fixture(scope="module")
def folder(vaes: dict[str, AutoencoderKL], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vaes(tmp_path_factory.mktemp("vaes"), vaes)


@pytest.fixture(scope="module")
def start(
    tiny_sd15: Path, tiny_sd15_inpainting: Path, tiny_sdxl: Path, folder: Path
) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(resident_mib: int = 16, **settings: Any) -> Engine:
        catalogue = {
            "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
            "inpainting": CheckpointSpec(family="sd15", source=str(tiny_sd15_inpainting)),
            "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
        }
        chosen = {"device": "cpu", "cpu_threads": 1, "resident_checkpoints": 3, "reproducible_rows": 8, **settings}
        named = ConditioningSettings(vaes=VaesSettings(folder=str(folder), resident_mib=resident_mib))
        engine = Engine(EngineSettings.model_validate(chosen), catalogue, conditioning=named)
        engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="module")
def engine(start: Callable[..., Engine]) -> Engine:
    return start()


def drawn(pipeline: Any, request: DenoiseRequest, **inputs: Any) -> Pixels:
    """What diffusers' pipeline draws."""
    latents = reference(pipeline, request, seeded(request), **inputs)
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents[None] / pipeline.vae.config.scaling_factor).sample[0]
    pixels: Pixels = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return pixels


def with_vae(pipeline_class: Any, pipeline: Any, vae: AutoencoderKL) -> Any:
    made = pipeline_class(**{**pipeline.components, "vae": vae}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def assert_alike(result: DenoiseResult, expected: Pixels) -> None:
    assert result.image is not None
    assert result.image.shape == expected.shape
    assert np.abs(result.image.astype(int) - expected).max() <= 1, result.lane_id


def test_as_diffusers_alone_and_among_lanes_with_others(
    engine: Engine, run_together: RunTogether, vaes: dict[str, AutoencoderKL], sd15_pipeline: Any
) -> None:
    begun = {"image": PICTURE, "strength": 0.6}
    asked: list[dict[str, Any]] = [
        {},
        {"vae": "soft"},
        {"vae": "file", "guidance_scale": 1.0},
        {"vae": "soft", **begun},
        begun,
        {"vae": "file", **begun},
        {"vae": "file", **begun, "mask": MASK},
        {"vae": "soft", "steps": 2},
    ]
    requests = [
        ask(lane_id=str(n), seed=30 + n, sampler="ddim", reproducible=True, **{"steps": 4, **changes})
        for n, changes in enumerate(asked)
    ]
    expected = []
    for request in requests:
        kind, inputs = type(sd15_pipeline), {"width": SIZE, "height": SIZE}
        if request.image is not None:
            kind, inputs = StableDiffusionImg2ImgPipeline, {"image": Image.fromarray(PICTURE), "strength": 0.6}
        if request.mask is not None:
            kind, inputs = StableDiffusionInpaintPipeline, inputs | {"mask_image": Image.fromarray(MASK)}
        pipeline = with_vae(kind, sd15_pipeline, vaes.get(request.vae or "", sd15_pipeline.vae))
        expected.append(drawn(pipeline, request, **inputs))
    assert np.abs(expected[3].astype(int) - expected[4]).max() > 10  # it makes a difference
    work = [(request, encode(sd15_pipeline, request)) for request in requests]
    alone = [run_together(engine, [item])[0] for item in work]
    together = run_together(engine, work)
    for want, one, other in zip(expected, alone, together, strict=True):
        assert_alike(one, want)
        assert one.image is not None
        assert other.image is not None
        assert one.image.tobytes() == other.image.tobytes()
    hashes = [result.vae_hash for result in together]
    assert hashes[0] is hashes[4] is None
    assert hashes[1] == hashes[3] == hashes[7] != hashes[2] == hashes[5] == hashes[6]


def test_sdxl_and_an_inpainting_unet(
    engine: Engine,
    run_together: RunTogether,
    vaes: dict[str, AutoencoderKL],
    sdxl_pipeline: Any,
    tiny_sd15_inpainting: Path,
) -> None:
    inpainting: Any = StableDiffusionInpaintPipeline.from_pretrained(tiny_sd15_inpainting, safety_checker=None)
    masked = ask(checkpoint="inpainting", vae="soft", image=PICTURE, mask=MASK, strength=1.0, lane_id="masked")
    inputs = {"image": Image.fromarray(PICTURE), "mask_image": Image.fromarray(MASK), "strength": 1.0}
    (result,) = run_together(engine, [(masked, encode(inpainting, masked))])
    assert_alike(result, drawn(with_vae(type(inpainting), inpainting, vaes["soft"]), masked, **inputs))
    xl = ask(checkpoint="sdxl", vae="xl", lane_id="xl")
    pipeline = StableDiffusionXLPipeline(**{**sdxl_pipeline.components, "vae": vaes["xl"]}, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    (result,) = run_together(engine, [(xl, encode(sdxl_pipeline, xl))])
    assert_alike(result, drawn(pipeline, xl, width=SIZE, height=SIZE))


def test_offloaded_it_is_on_the_device_alone(
    engine: Engine, start: Callable[..., Engine], run_together: RunTogether, encode_sd15: Encode
) -> None:
    work = [
        (ask(lane_id=f"{number}", seed=number, vae=name, image=PICTURE, strength=0.6), encode_sd15("a cat"))
        for number, name in enumerate((None, "soft", "file"))
    ]
    expected = run_together(engine, work)
    found = run_together(start(memory="model_offload"), work)
    for one, other in zip(expected, found, strict=True):
        assert one.image is not None
        assert_alike(other, one.image)


def test_a_lost_lane_goes_on_with_the_same_vae(
    engine: Engine, start: Callable[..., Engine], run_together: RunTogether, encode_sd15: Encode
) -> None:
    request = ask(vae="soft", image=PICTURE, strength=0.8, reproducible=True, state_every=1, sampler="euler_a")
    listener = Listener()
    engine.submit(request, encode_sd15("a cat"), listener)
    whole = listener.outcome()
    assert isinstance(whole, DenoiseResult)
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    resumed = dataclasses.replace(request, resume=state)
    (result,) = run_together(start(), [(resumed, encode_sd15("a cat"))])
    assert result.image is not None
    assert whole.image is not None
    assert (result.image.tobytes(), result.vae_hash) == (whole.image.tobytes(), whole.vae_hash)
    for name in (None, "file"):
        with pytest.raises(StateRefused, match="another vae"):
            run_together(engine, [(dataclasses.replace(resumed, vae=name), encode_sd15("a cat"))])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none", "no VAE named 'none'"),
        ("xl", r"VAE 'xl' is for another kind of model: its scaling_factor is 0\.13025, this model's 0\.18215"),
        ("narrow", "VAE 'narrow' is for another kind of model: its block_out_channels is"),
        ("file-narrow", r"VAE 'file-narrow' can't be read: file-narrow\.safetensors: .*of another shape"),
        ("infinite", r"VAE 'infinite' can't be read: .* infinite or not a number"),
        ("gappy", "VAE 'gappy' can't be read: .*tensors missing"),
    ],
)
def test_what_cant_be_used_fails_alone(
    engine: Engine,
    run_together: RunTogether,
    folder: Path,
    vaes: dict[str, AutoencoderKL],
    encode_sd15: Encode,
    name: str,
    why: str,
) -> None:
    narrow = random_vae(vaes["soft"], 5, block_out_channels=[4, 4, 4, 4])
    infinite = random_vae(vaes["soft"], 6)
    infinite.decoder.conv_in.weight.fill_(torch.inf)
    write_vaes(folder, {"narrow": narrow, "file-narrow": narrow, "infinite": infinite, "gappy": vaes["soft"]})
    weights = folder / "gappy" / "diffusion_pytorch_model.safetensors"
    save_file({key: of for key, of in load_file(weights).items() if "mid_block" not in key}, weights)
    text = encode_sd15("a cat")
    undisturbed = ask(lane_id="plain", reproducible=True)
    (before,) = run_together(engine, [(undisturbed, text)])
    refused, plain = Listener(), Listener()
    engine.submit(undisturbed, text, plain)
    engine.submit(ask(lane_id="refused", vae=name), text, refused)
    error, after = refused.outcome(), plain.outcome()
    assert isinstance(error, VaeRefused)
    assert error.field == "vae"
    assert re.search(why, error.message), error.message
    assert str(folder) not in error.message
    assert isinstance(after, DenoiseResult)
    assert after.image is not None
    assert before.image is not None
    assert after.image.tobytes() == before.image.tobytes()


def test_room_for_one_at_a_time_and_for_none(folder: Path, tiny_sd15: Path) -> None:
    cpu = torch.device("cpu")
    device, settings = Device(cpu, torch.float32, RowThreads(1)), EngineSettings(device="cpu")
    checkpoint = load_denoiser(CheckpointSpec(family="sd15", source=str(tiny_sd15)), cpu, torch.float32)
    finder = VaeFinder(VaesSettings(folder=str(folder)))
    soft, other = ask(vae="soft"), ask(vae="file")
    file, other_file = finder.find(soft), finder.find(other)
    assert file is not None
    assert other_file is not None
    size = 4 * file.source.numbers
    vaes = RequestedVaes(size * 3 // 2, device, settings, lambda name, cells: False)
    one = vaes.get(soft, file, checkpoint, ())
    assert one.bytes == size == sum(of.nbytes for of in checkpoint.vae.state_dict().values())
    assert (vaes.has_room(soft, file, {one}), vaes.has_room(other, other_file, {one})) == (True, False)
    assert vaes.has_room(other, other_file, ())
    assert vaes.has_room(ask(), None, {one})
    assert vaes.get(soft, file, checkpoint, {one}) is one
    vaes.get(other, other_file, checkpoint, ())
    assert vaes.get(soft, file, checkpoint, ()) is not one
    none = RequestedVaes(size - 1, device, settings, lambda name, cells: False)
    assert none.has_room(soft, file, ())
    with pytest.raises(DoesNotFit, match="the VAE 'soft' takes 0 MiB, there is room for 0") as refused:
        none.get(soft, file, checkpoint, ())
    assert refused.value.field == "vae"


def test_a_file_that_changed_while_the_image_waited(
    folder: Path, tiny_sd15: Path, vaes: dict[str, AutoencoderKL]
) -> None:
    cpu = torch.device("cpu")
    checkpoint = load_denoiser(CheckpointSpec(family="sd15", source=str(tiny_sd15)), cpu, torch.float32)
    write_vaes(folder, {"replaced": vaes["soft"]})
    request = ask(vae="replaced")
    file = VaeFinder(VaesSettings(folder=str(folder))).find(request)
    assert file is not None
    weights = folder / "replaced" / "diffusion_pytorch_model.safetensors"
    save_file({key: of * 2 for key, of in load_file(weights).items()}, weights, {"longer": "than before"})
    device = Device(cpu, torch.float32, RowThreads(1))
    requested = RequestedVaes(1 << 20, device, EngineSettings(device="cpu"), lambda name, cells: False)
    with pytest.raises(VaeRefused, match="VAE 'replaced' was changed while the image waited: ask again"):
        requested.get(request, file, checkpoint, ())


def test_the_plan_counts_a_vae_that_decodes_in_float32(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Where the checkpoint's own doesn't, and requests may name another."""
    source = shutil.copytree(tiny_sdxl, tmp_path / "sdxl")
    config = json.loads((source / "vae" / "config.json").read_text())
    (source / "vae" / "config.json").write_text(json.dumps(config | {"force_upcast": False}))
    spec = {"sdxl": CheckpointSpec(family="sdxl", source=str(source))}
    settings, budget = EngineSettings(device="cpu"), MemoryBudget(1 << 30, "a test", "budget", offloads=True)

    def decodes(**others: bool) -> int:
        plan = MemoryPlan(settings, torch.float16, budget, spec, describe_denoiser, **others)
        return next(row.activations for row in plan.table.rows if row.component == "VAE")

    assert decodes(other_vaes=True) > decodes()
