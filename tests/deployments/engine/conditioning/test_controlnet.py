"""ControlNets in the engine against diffusers' own pipelines, alone and among unlike lanes; others aren't disturbed."""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.conditioning.controlnet_files import ControlnetFolder
from deployments.engine.conditioning.controlnet_weights import read_controlnet
from deployments.engine.config import ConditioningSettings, ControlnetSettings, EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.errors import ControlnetRefused, DoesNotFit, InvalidRequest, StateRefused
from deployments.engine.types import (
    Conditioning,
    Control,
    DenoiseRequest,
    DenoiseResult,
    Pixels,
    Progress,
    PromptEmbedding,
)
from tests.controlnets import random_controlnet, write_controlnet
from tests.deployments.engine.conftest import Encode
from tests.deployments.engine.denoising.parity import assert_close, encode, reference, seeded
from tests.deployments.engine.listening import Listener, ask
from tests.ldm_export import export_controlnet
from tests.tiny_checkpoints import PUBLISHED_LAYERS, write_tiny_sd15

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
    settings = EngineSettings(device="cpu", cpu_threads=1, resident_checkpoints=3, reproducible_rows=8)
    controlnets = ControlnetSettings(folder=str(folder), resident_mib=resident_mib)
    engine = Engine(settings, catalogue, conditioning=ConditioningSettings(controlnets))
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
    (Control("edges", picture(6)), Control("pose", picture(7)), Control("edges", picture(8), scale=0.7, start=0.2)),
]


def pictured(controls: tuple[Control, ...]) -> dict[str, Any]:
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
    return reference(made, request, seeded(request), **pictured(request.controls), **size)


def test_alone_and_in_one_batch(
    engine: Engine, run_together: RunTogether, nets: dict[str, ControlNetModel], sd15_pipeline: Any
) -> None:
    samplers = ("euler", "pndm", "dpmpp_2m", "heun", "ddim", "lms")
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
    assert together[3].conditioning_hashes["controls"].keys() == {"edges", "pose"}
    assert together[2].conditioning_hashes == {}


def test_one_that_says_nothing_changes_no_bit(
    engine: Engine, run_together: RunTogether, folder: Path, sd15_pipeline: Any, encode_sd15: Encode
) -> None:
    write_controlnet(folder / "silent", ControlNetModel.from_unet(sd15_pipeline.unet))
    text = encode_sd15("a cat")
    plain, silent, out_of_time = (
        run_together(engine, [(steered(*controls), text)])[0].latents
        for controls in ((), (Control("silent", picture(1)),), (Control("edges", picture(1), start=0.4, end=0.5),))
    )
    assert plain is not None
    assert [one is not None and one.tobytes() == plain.tobytes() for one in (silent, out_of_time)] == [True, True]


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


def test_img2img(
    engine: Engine, run_together: RunTogether, nets: dict[str, ControlNetModel], sd15_pipeline: Any
) -> None:
    """Its fractions are of the steps that are taken."""
    control = Control("edges", picture(1), start=0.3, end=0.7)
    request = steered(control, image=picture(7), strength=0.6, steps=10, sampler="dpmpp_2m")
    made = with_controlnets(
        StableDiffusionControlNetImg2ImgPipeline, sd15_pipeline, [nets["edges"]], requires_safety_checker=False
    )
    told = pictured((control,))
    told |= {"image": Image.fromarray(picture(7)), "control_image": told["image"], "strength": 0.6}
    wanted = reference(made, request, seeded(request), **told)
    assert_close(run_together(engine, [(request, encode(sd15_pipeline, request))]), {request.lane_id: wanted})


def test_a_unet_with_a_mask_s_channels(
    engine: Engine, run_together: RunTogether, nets: dict[str, ControlNetModel], tiny_sd15_inpainting: Path
) -> None:
    made = StableDiffusionControlNetInpaintPipeline.from_pretrained(
        tiny_sd15_inpainting, controlnet=[nets["edges"]], safety_checker=None, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    mask = np.repeat([[0, 255]], SIZE, axis=0).repeat(SIZE // 2, axis=1).astype(np.uint8)
    control = Control("edges", picture(1))
    request = steered(control, checkpoint="inpainting", image=picture(7), mask=mask, strength=1.0)
    told = pictured((control,))
    told |= {"image": Image.fromarray(picture(7)), "mask_image": Image.fromarray(mask), "control_image": told["image"]}
    wanted = reference(made, request, seeded(request), **told)
    assert_close(run_together(engine, [(request, encode(made, request))]), {request.lane_id: wanted})


def test_texts_of_unlike_lengths(engine: Engine, run_together: RunTogether, encode_sd15: Encode) -> None:
    """The shorter one is filled up, and neither the UNet nor the ControlNet looks there: as each text does alone."""
    states = [10 * encode_sd15(word, None).positive.hidden_states for word in ("cat", "dog", "red")]
    short, long = PromptEmbedding(states[0]), PromptEmbedding(np.concatenate(states[1:]))

    def latents_of(text: Conditioning, scale: float) -> Any:
        request = steered(Control("edges", picture(1)), steps=1, sampler="ddim", guidance_scale=scale)
        return run_together(engine, [(request, text)])[0].latents

    of_long, of_short = (latents_of(Conditioning(one, None), 1.0) for one in (long, short))
    assert np.abs(of_long - of_short).max() > 0.01
    both = latents_of(Conditioning(long, short), 3.0)
    np.testing.assert_allclose(both, of_short + 3 * (of_long - of_short), rtol=0, atol=1e-4 * np.abs(both).max())


def test_a_lane_goes_on_only_with_the_same_controls(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a cat")
    control = Control("edges", picture(1), end=0.9)
    request = steered(control, state_every=3)
    listener = Listener()
    engine.submit(request, text, listener)
    whole = listener.outcome()
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    resumed = run_together(engine, [(dataclasses.replace(request, resume=state), text)])[0]
    assert isinstance(whole, DenoiseResult)
    assert whole.latents is not None
    assert resumed.latents is not None
    assert resumed.latents.tobytes() == whole.latents.tobytes()
    others = ({"image": picture(2)}, {"scale": 0.9}, {"end": 0.8}, {"name": "pose"})
    for controls in ((), *((dataclasses.replace(control, **other),) for other in others)):
        with pytest.raises(StateRefused, match="another conditions"):
            run_together(engine, [(dataclasses.replace(steered(*controls), resume=state), text)])


def test_what_cannot_steer_fails_its_lane_alone(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode, encode_sdxl: Encode
) -> None:
    text = encode_sd15("a cat")
    beside = steered(Control("edges", picture(1)), lane_id="beside")
    undisturbed = run_together(engine, [(beside, text)])[0]
    bad = {
        "unknown": (steered(Control("nothing", picture(1))), text, "no ControlNet named 'nothing'"),
        "other": (
            steered(Control("xl", picture(1))),
            text,
            "'xl' is for another kind of model: its block_out_channels",
        ),
        "sdxl": (
            steered(Control("edges", picture(1)), checkpoint="sdxl"),
            encode_sdxl("x"),
            "is for another kind of model",
        ),
        "small": (steered(Control("edges", picture(1, size=32))), text, "controlnets is uint8 (32, 32, 3)"),
    }
    good, failed = Listener(), {name: Listener() for name in bad}
    engine.submit(beside, text, good)
    for name, (request, of_text, _) in bad.items():
        engine.submit(dataclasses.replace(request, lane_id=name), of_text, failed[name])
    for name, (_, _, message) in bad.items():
        error = failed[name].outcome()
        assert isinstance(error, InvalidRequest)
        assert message in error.message
        assert error.field == "controlnets"
    result = good.outcome()
    assert isinstance(result, DenoiseResult)
    assert result.latents is not None
    assert undisturbed.latents is not None
    assert result.latents.tobytes() == undisturbed.latents.tobytes()


def test_of_one_that_is_refused_nothing_stays(
    engine: Engine, folder: Path, nets: dict[str, ControlNetModel], encode_sd15: Encode
) -> None:
    """Whoever keeps its error keeps none of the frames that had its model."""
    broken = folder / "broken"
    write_controlnet(broken, nets["edges"])
    file = broken / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"].fill_(float("nan"))
    save_file(tensors, file)

    def models() -> set[int]:
        return {id(of) for of in gc.get_objects() if type(of) is ControlNetModel}

    gc.collect()
    before = models()
    gc.disable()
    try:
        listener = Listener()
        engine.submit(steered(Control("broken", picture(1))), encode_sd15("x"), listener)
        outcome = listener.outcome()
        assert isinstance(outcome, ControlnetRefused)
        assert "not a number" in str(outcome)
        assert models() <= before
    finally:
        gc.enable()


def test_as_a_single_file(
    engine: Engine,
    run_together: RunTogether,
    nets: dict[str, ControlNetModel],
    folder: Path,
    encode_sd15: Encode,
) -> None:
    """In the original code's names, and in diffusers'; what its config.json would say follows from the UNet."""
    export_controlnet(nets["edges"], folder / "original.safetensors")
    save_file(nets["edges"].state_dict(), folder / "bare.safetensors")
    text = encode_sd15("a cat")
    wanted, *others = (
        run_together(engine, [(steered(Control(name, picture(1)), steps=2), text)])[0].latents
        for name in ("edges", "original", "bare")
    )
    assert wanted is not None
    assert [one is not None and one.tobytes() == wanted.tobytes() for one in others] == [True, True]
    missing = {name: one for name, one in nets["edges"].state_dict().items() if "controlnet_mid" not in name}
    save_file(missing, folder / "missing.safetensors")
    with pytest.raises(ControlnetRefused, match=r"'missing' can't be read: missing\.safetensors: 2 tensors missing"):
        run_together(engine, [(steered(Control("missing", picture(1))), text)])


def test_a_single_file_with_published_layers(tmp_path: Path) -> None:
    """Its names count the layers of a block."""
    folder = write_tiny_sd15(tmp_path / "tiny-sd15", layers=PUBLISHED_LAYERS)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32)
    net = random_controlnet(unet, seed=6)
    (tmp_path / "controlnets").mkdir()
    export_controlnet(net, tmp_path / "controlnets" / "original.safetensors")
    source = ControlnetFolder(str(tmp_path / "controlnets")).find("original")
    read = read_controlnet(source, unet.config, 4, torch.device("cpu"), torch.float32).state_dict()
    assert read.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(read[name], tensor)


def test_those_in_use_stay_and_others_wait_for_room(
    tiny_sd15: Path,
    tiny_sd15_inpainting: Path,
    tiny_sdxl: Path,
    tmp_path: Path,
    sd15_pipeline: Any,
    encode_sd15: Encode,
) -> None:
    for seed, name in enumerate("abcd"):
        net = random_controlnet(sd15_pipeline.unet, seed, seen=(8, 16, 32, 64))
        write_controlnet(tmp_path / name, net)
    size = sum(of.nbytes for of in net.state_dict().values())
    assert 2 * size < 1 << 20 < 3 * size  # there is room for two
    engine = start(tiny_sd15, tiny_sd15_inpainting, tiny_sdxl, tmp_path, resident_mib=1)
    text, listeners = encode_sd15("a cat"), []
    try:
        for number, name in enumerate("abcdab"):
            listeners.append(Listener())
            engine.submit(steered(Control(name, picture(1)), lane_id=str(number), steps=3), text, listeners[-1])
        results = [listener.outcome() for listener in listeners]
        many = Listener()
        engine.submit(steered(*(Control(name, picture(1)) for name in "abc")), text, many)
        refused = many.outcome()
    finally:
        engine.stop()
    assert isinstance(refused, DoesNotFit)
    assert "'a', 'b', 'c' take" in refused.message
    latents = [result.latents for result in results if isinstance(result, DenoiseResult)]
    assert len({one.tobytes() for one in latents if one is not None}) == 4
    assert len(latents) == len(listeners)
