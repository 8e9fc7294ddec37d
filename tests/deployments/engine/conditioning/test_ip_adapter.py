"""Reference pictures in the engine against diffusers' own pipelines, alone and among unlike lanes."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.conditioning.image_encoder import ImageEncoder
from deployments.engine.config import ConditioningSettings, ControlnetSettings, EngineSettings, IpAdapterSettings
from deployments.engine.engine import Engine
from deployments.engine.errors import DoesNotFit, InvalidRequest, StateRefused
from deployments.engine.types import (
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    Pixels,
    Progress,
    Reference,
    ReferenceFeatures,
)
from tests.deployments.engine.conftest import Encode
from tests.deployments.engine.denoising.parity import assert_close, encode, reference
from tests.deployments.engine.listening import Listener, ask
from tests.ip_adapters import write_image_encoder, write_ip_adapter

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]
SIZE = 64
LEFT = np.repeat([[255, 0]], SIZE, axis=0).repeat(SIZE // 2, axis=1).astype(np.uint8)
PLUS_OR_FULL = ("plus", "full")


def picture(seed: int) -> Pixels:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture(scope="module")
def folder(sd15_pipeline: Any, sdxl_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ip-adapters")
    write_ip_adapter(made / "base.safetensors", sd15_pipeline.unet, "base", seed=1)
    write_ip_adapter(made / "plus.safetensors", sd15_pipeline.unet, "plus", seed=2)
    write_ip_adapter(made / "full.safetensors", sd15_pipeline.unet, "full", seed=3)
    write_ip_adapter(made / "xl.safetensors", sdxl_pipeline.unet, "base", seed=4)
    return made


@pytest.fixture(scope="module")
def vision(folder: Path) -> Path:
    return write_image_encoder(folder / "image_encoder")


@pytest.fixture(scope="module")
def encoder(vision: Path) -> ImageEncoder:
    return ImageEncoder(str(vision), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def engine(tiny_sd15: Path, tiny_sdxl: Path, folder: Path) -> Iterator[Engine]:
    started = start(tiny_sd15, tiny_sdxl, folder)
    yield started
    started.stop()


def start(sd15: Path, sdxl: Path, folder: Path, resident_mib: int = 16) -> Engine:
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(sd15)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(sdxl)),
    }
    settings = EngineSettings(device="cpu", cpu_threads=2, resident_checkpoints=2, reproducible_rows=8)
    adapters = IpAdapterSettings(folder=str(folder), resident_mib=resident_mib)
    engine = Engine(settings, catalogue, conditioning=ConditioningSettings(ControlnetSettings(), adapters))
    engine.start()
    return engine


Shown = tuple[Reference, int]  # with the seed of its picture


def features(encoder: ImageEncoder, shown: Shown) -> ReferenceFeatures:
    of, seed = shown
    see = encoder.patches if of.name in PLUS_OR_FULL else encoder.projections
    return see([picture(seed)])[0]


def pipeline_with(
    pipeline_class: Any, source: Path, folder: Path, vision: Path, shown: tuple[Shown, ...], **options: Any
) -> Any:
    made = pipeline_class.from_pretrained(source, dtype=torch.float32, **options)
    made.set_progress_bar_config(disable=True)
    names = [f"{of.name}.safetensors" for of, _ in shown]
    made.load_ip_adapter(str(folder), subfolder="", weight_name=names, image_encoder_folder=vision.name)
    made.set_ip_adapter_scale([of.scale for of, _ in shown])
    return made


def expected(request: DenoiseRequest, pipeline: Any, shown: tuple[Shown, ...]) -> torch.Tensor:
    masks = [of.mask for of, _ in shown]
    options: dict[str, Any] = {}
    pictures: list[Any] = [Image.fromarray(picture(seed)) for _, seed in shown]
    if any(mask is not None for mask in masks):
        whole = np.full((SIZE, SIZE), 255, np.uint8)
        images = [Image.fromarray(whole if mask is None else mask) for mask in masks]
        processed = IPAdapterMaskProcessor().preprocess(images, height=SIZE, width=SIZE)
        options["cross_attention_kwargs"] = {"ip_adapter_masks": [mask[None] for mask in processed]}
        pictures = [[one] for one in pictures]
    return reference(
        pipeline, request, torch.Generator().manual_seed(request.seed), ip_adapter_image=pictures, **options
    )


SHOWN: list[tuple[Shown, ...]] = [
    ((Reference("base"), 1),),
    ((Reference("plus", scale=0.6), 2),),
    (),
    ((Reference("base", scale=0.7), 3), (Reference("base", scale=1.2), 4)),
    ((Reference("full", scale=0.8), 5), (Reference("plus"), 1), (Reference("base", scale=0.3), 2)),
    ((Reference("base", mask=LEFT), 6), (Reference("plus", scale=0.5, mask=255 - LEFT), 7)),
    ((Reference("base"), 8),),  # without guidance
]


def lanes() -> list[DenoiseRequest]:
    samplers = ("euler", "ddim", "dpmpp_2m", "euler_a", "unipc", "euler", "ddim")
    return [
        ask(
            lane_id=str(number),
            output="latents",
            reproducible=True,
            seed=20 + number,
            steps=5 + number % 3,
            sampler=samplers[number],
            guidance_scale=1.0 if number == len(SHOWN) - 1 else 5.0,
            references=tuple(of for of, _ in shown),
        )
        for number, shown in enumerate(SHOWN)
    ]


def with_pictures(text: Conditioning, encoder: ImageEncoder, shown: tuple[Shown, ...]) -> Conditioning:
    return dataclasses.replace(text, references=tuple(features(encoder, one) for one in shown))


def test_as_diffusers_does_alone_and_among_unlike_lanes(
    engine: Engine, run_together: RunTogether, tiny_sd15: Path, folder: Path, vision: Path, encoder: ImageEncoder
) -> None:
    wanted, work = {}, []
    for request, shown in zip(lanes(), SHOWN, strict=True):
        if shown:
            pipeline = pipeline_with(
                StableDiffusionPipeline, tiny_sd15, folder, vision, shown, safety_checker=None,
                requires_safety_checker=False,
            )  # fmt: skip
            wanted[request.lane_id] = expected(request, pipeline, shown)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(
                tiny_sd15, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
            )
            pipeline.set_progress_bar_config(disable=True)
            wanted[request.lane_id] = reference(pipeline, request, torch.Generator().manual_seed(request.seed))
        work.append((request, with_pictures(encode(pipeline, request), encoder, shown)))
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
    assert together[4].conditioning_hashes["references"].keys() == {"full", "plus", "base"}


def test_sdxl(
    engine: Engine, run_together: RunTogether, tiny_sdxl: Path, folder: Path, vision: Path, encoder: ImageEncoder
) -> None:
    shown = ((Reference("xl", scale=0.9), 1),)
    request = ask(
        lane_id="0", checkpoint="sdxl", output="latents", reproducible=True, references=(shown[0][0],), seed=21
    )
    pipeline = pipeline_with(StableDiffusionXLPipeline, tiny_sdxl, folder, vision, shown, add_watermarker=False)
    text = with_pictures(encode(pipeline, request), encoder, shown)
    assert_close(run_together(engine, [(request, text)]), {"0": expected(request, pipeline, shown)})


def test_out_of_its_time_a_picture_changes_no_bit(
    engine: Engine, run_together: RunTogether, encoder: ImageEncoder, encode_sd15: Encode
) -> None:
    def latents(*shown: Shown) -> Any:
        request = ask(output="latents", reproducible=True, references=tuple(of for of, _ in shown))
        return run_together(engine, [(request, with_pictures(encode_sd15("a cat"), encoder, shown))])[0].latents

    plain = latents()
    assert latents((Reference("base", start=0.4, end=0.5), 1)).tobytes() == plain.tobytes()
    begun, whole = latents((Reference("base", end=0.5), 1)), latents((Reference("base"), 1))
    assert np.abs(begun - plain).max() > 0.01
    assert np.abs(begun - whole).max() > 0.01


def test_a_lane_goes_on_only_with_the_same_pictures(
    engine: Engine, run_together: RunTogether, encoder: ImageEncoder, encode_sd15: Encode
) -> None:
    of = Reference("base", end=0.9)
    text = with_pictures(encode_sd15("a cat"), encoder, ((of, 1),))
    request = ask(output="latents", reproducible=True, references=(of,), state_every=3)
    listener = Listener()
    engine.submit(request, text, listener)
    whole = listener.outcome()
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    resumed = run_together(engine, [(dataclasses.replace(request, resume=state), text)])[0]
    assert isinstance(whole, DenoiseResult)
    assert whole.latents is not None
    assert resumed.latents is not None
    assert resumed.latents.tobytes() == whole.latents.tobytes()
    others: list[tuple[Reference, int]] = [
        (of, 2),
        (dataclasses.replace(of, scale=0.9), 1),
        (dataclasses.replace(of, end=0.8), 1),
        (dataclasses.replace(of, mask=LEFT), 1),
    ]
    for other in others:
        changed = dataclasses.replace(request, references=(other[0],), resume=state)
        with pytest.raises(StateRefused, match="another conditions"):
            run_together(engine, [(changed, with_pictures(encode_sd15("a cat"), encoder, (other,)))])


def test_what_cannot_be_shown_fails_its_lane_alone(
    engine: Engine, run_together: RunTogether, encoder: ImageEncoder, encode_sd15: Encode, folder: Path
) -> None:
    tensors = load_file(folder / "base.safetensors")
    save_file(tensors | {"image_proj.proj.bias": tensors["image_proj.proj.bias"] / 0}, folder / "infinite.safetensors")
    save_file(tensors | {"ip_adapter.99.to_k_ip.weight": torch.ones(2, 2)}, folder / "odd.safetensors")
    face = {"image_proj.norm.weight": torch.ones(2), "image_proj.proj.0.weight": torch.ones(2, 2)}
    save_file(face | {"ip_adapter.1.to_k_ip.weight": torch.ones(2, 2)}, folder / "face.safetensors")
    text = encode_sd15("a cat")
    beside = ask(output="latents", reproducible=True, references=(Reference("base"),), lane_id="beside")
    with_beside = with_pictures(text, encoder, ((Reference("base"), 1),))
    undisturbed = run_together(engine, [(beside, with_beside)])[0]
    small = np.zeros((32, 32), np.uint8)
    bad: list[tuple[Reference, Conditioning, str]] = [
        (Reference("nothing"), with_beside, "no IP-Adapter named 'nothing'"),
        (Reference("xl"), with_beside, "'xl' is for another kind of model"),
        (Reference("plus"), with_beside, "takes features of 32 channels of each patch"),
        (Reference("base", mask=small), with_beside, "mask is uint8 (32, 32), expected uint8 (64, 64)"),
        (Reference("infinite"), with_beside, "can't be read"),
        (Reference("odd"), with_beside, "to_v_ip.weight is missing"),
        (Reference("face"), with_beside, "FaceID"),
        (Reference("base"), text, "1 references came with the features of 0 pictures"),
    ]
    good, failed = Listener(), [Listener() for _ in bad]
    engine.submit(beside, with_beside, good)
    for number, ((of, of_text, _), listener) in enumerate(zip(bad, failed, strict=True)):
        engine.submit(ask(output="latents", lane_id=f"bad {number}", references=(of,)), of_text, listener)
    for (_, _, message), listener in zip(bad, failed, strict=True):
        error = listener.outcome()
        assert isinstance(error, InvalidRequest)
        assert message in error.message
        assert error.field == "references"
    result = good.outcome()
    assert isinstance(result, DenoiseResult)
    assert result.latents is not None
    assert undisturbed.latents is not None
    assert result.latents.tobytes() == undisturbed.latents.tobytes()


def test_more_than_there_is_room_for(
    tiny_sd15: Path, tiny_sdxl: Path, folder: Path, encoder: ImageEncoder, encode_sd15: Encode
) -> None:
    engine = start(tiny_sd15, tiny_sdxl, folder, resident_mib=0)
    try:
        listener = Listener()
        shown = ((Reference("base"), 1),)
        engine.submit(ask(references=(shown[0][0],)), with_pictures(encode_sd15("x"), encoder, shown), listener)
        error = listener.outcome()
        assert isinstance(error, DoesNotFit)
        assert error.field == "references"
    finally:
        engine.stop()


def test_the_features_are_diffusers_s(vision: Path, encoder: ImageEncoder, tiny_sd15: Path, folder: Path) -> None:
    pipeline = pipeline_with(
        StableDiffusionPipeline, tiny_sd15, folder, vision, ((Reference("plus"), 1),), safety_checker=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pictures = [picture(1), picture(2)]
    for hidden, seen in ((False, encoder.projections(pictures)), (True, encoder.patches(pictures))):
        for image, of in zip(pictures, seen, strict=True):
            positive, negative = pipeline.encode_image(Image.fromarray(image), "cpu", 1, hidden)
            np.testing.assert_allclose(of.positive, positive[0].detach().numpy(), rtol=0, atol=1e-5)
            np.testing.assert_allclose(of.negative, negative[0].detach().numpy(), rtol=0, atol=1e-5)
