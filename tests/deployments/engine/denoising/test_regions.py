"""Regions in the engine against a loop of diffusers' modules, alone and among unlike lanes."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, LoraSettings
from deployments.engine.engine import Engine
from deployments.engine.errors import InvalidRequest, StateRefused
from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import (
    MAX_REGIONS,
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    Pixels,
    Progress,
    PromptEmbedding,
    Region,
)
from tests.deployments.engine.conftest import Encode
from tests.deployments.engine.denoising.parity import assert_close
from tests.deployments.engine.listening import Listener, ask
from tests.deployments.engine.samplers.diffusers_schedulers import FOR_LATENTS, SCHEDULERS
from tests.loras import UNET_LAYERS, Parts, merged, random_updates, write_kohya

Work = tuple[DenoiseRequest, Conditioning]
RunTogether = Callable[[Engine, list[Work]], list[DenoiseResult]]

SIZE = 64
PROMPTS = ("a red circle", "a green star", "a blue ring", "a pink heart", "a cyan cross", "a black square", "")


def part(top: int, bottom: int, left: int, right: int, value: int = 255) -> Pixels:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[top:bottom, left:right] = value
    return mask


EVERYWHERE, LEFT, RIGHT = part(0, SIZE, 0, SIZE), part(0, SIZE, 0, 32), part(0, SIZE, 32, SIZE)


@pytest.fixture(scope="module")
def parts(sd15_pipeline: Any) -> dict[str, Parts]:
    """What the LoRAs of the folder change, by name."""
    unet = sd15_pipeline.unet
    layers = {"all": UNET_LAYERS, "attention": r"attn\d\.to_(q|k|v|out\.0)"}
    return {name: {"unet": random_updates(unet, of, seed=seed)} for seed, (name, of) in enumerate(layers.items())}


@pytest.fixture(scope="module")
def folder(parts: dict[str, Parts], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loras")
    for name, of_lora in parts.items():
        write_kohya(made / f"{name}.safetensors", of_lora)
    return made


@pytest.fixture(scope="module")
def engine(tiny_sd15: Path, tiny_lcm: Path, tiny_sdxl: Path, tiny_sdxl_refiner: Path, folder: Path) -> Iterator[Engine]:
    catalogue = {
        "sd15": CheckpointSpec(family="sd15", source=str(tiny_sd15)),
        "lcm": CheckpointSpec(family="sd15", source=str(tiny_lcm)),
        "sdxl": CheckpointSpec(family="sdxl", source=str(tiny_sdxl)),
        "refiner": CheckpointSpec(family="sdxl-refiner", source=str(tiny_sdxl_refiner)),
    }
    settings = EngineSettings(device="cpu", cpu_threads=1, resident_checkpoints=4, max_rows=32, reproducible_rows=32)
    engine = Engine(settings, catalogue, loras=LoraSettings(folder=str(folder)))
    engine.start()
    yield engine
    engine.stop()


def lane(lane_id: str, *regions: Region, sampler: str = "ddim", **changes: Any) -> DenoiseRequest:
    """Whose prompt is PROMPTS[0], and whose regions' are the others in turn."""
    return ask(
        lane_id,
        **{
            "sampler": sampler,
            "seed": sum(lane_id.encode()),
            "output": "latents",
            "steps": 5,
            "regions": regions,
            "composed_prompts": 1 + len(regions),
            **changes,
        },
    )


def texts(encode: Encode, request: DenoiseRequest, prompts: Sequence[str] = PROMPTS) -> Conditioning:
    first, *others = (encode(prompts[number]) for number in range(1 + len(request.regions)))
    return dataclasses.replace(
        first,
        negative=first.negative if request.guidance_scale > 1 else None,
        composed=tuple(other.positive for other in others),
        weights=(1.0,) * (1 + len(others)),
    )


def shares(request: DenoiseRequest) -> torch.Tensor:
    """By the rule, cell by cell."""
    table = torch.zeros(1 + len(request.regions), 1, SIZE // 8, SIZE // 8, dtype=torch.float64)
    for row in range(SIZE // 8):
        for column in range(SIZE // 8):
            cell = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            inside = [float(region.mask[cell].mean()) / 255 for region in request.regions]
            base = 1 - (1 - request.base_weight) * min(1.0, sum(inside))
            weighed = [region.weight * covered for region, covered in zip(request.regions, inside, strict=True)]
            whole = base + sum(weighed)
            table[:, 0, row, column] = torch.tensor([one / whole for one in (base, *weighed)], dtype=torch.float64)
    return table.float()


def by_diffusers(
    pipe: Any, request: DenoiseRequest, text: Conditioning, unets: Sequence[torch.nn.Module] | None = None
) -> torch.Tensor:
    """UNet and scheduler in a loop; a forward for each prompt, by a UNet of its own where there are `unets`."""
    name, changes = SCHEDULERS[request.sampler]
    config = changes | FOR_LATENTS.get(request.sampler, {})
    scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    scheduler.set_timesteps(request.steps)
    generator = torch.Generator().manual_seed(request.seed)
    latents = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=generator, dtype=torch.float32)
    latents = latents * scheduler.init_noise_sigma
    guided = range(int(request.guidance_start * request.steps), int(request.guidance_end * request.steps))
    options = {"generator": generator} if request.sampler in ("euler_a", "ddim") else {}
    for step, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.scale_model_input(latents, timestep)

        def predicted(of: PromptEmbedding, unet: Any, sample: Any = sample, timestep: Any = timestep) -> torch.Tensor:
            more: dict[str, Any] = {}
            if of.pooled is not None:
                ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32)
                more["added_cond_kwargs"] = {"text_embeds": torch.from_numpy(of.pooled)[None], "time_ids": ids}
            hidden = torch.from_numpy(of.hidden_states)[None]
            output: torch.Tensor = unet(sample, timestep, encoder_hidden_states=hidden, **more).sample
            return output

        with torch.no_grad():
            positives = (text.positive, *text.composed)
            outputs = [predicted(*one) for one in zip(positives, unets or [pipe.unet] * len(positives), strict=True)]
            output = sum(share * one for share, one in zip(shares(request), outputs, strict=True))
            if text.negative is not None and step in guided:
                negative = predicted(text.negative, pipe.unet if unets is None else unets[0])
                output = negative + request.guidance_scale * (output - negative)
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
    return latents[0]


LANES = [
    lane("halves", Region(LEFT), Region(RIGHT)),
    lane("with its prompt", Region(LEFT), Region(RIGHT), sampler="dpmpp_2m", base_weight=0.3),
    lane("plain", sampler="euler", steps=6),
    lane(
        "overlapping",
        Region(part(0, 44, 0, 44), 2.0),
        Region(part(20, SIZE, 12, SIZE, 180), 0.5),
        sampler="euler_a",
        base_weight=0.1,
    ),
    lane("unguided", Region(part(8, 24, 8, 64)), sampler="dpmpp_2m", guidance_scale=1.0, base_weight=0.5),
    lane(
        "most",
        *(Region(part(8 * number, 8 * number + 20, 0, SIZE - number)) for number in range(MAX_REGIONS)),
        sampler="unipc",
    ),
    lane("at times", Region(LEFT), sampler="ddim", guidance_start=0.2, guidance_end=0.7, base_weight=0.2),
    lane("plain unguided", sampler="ddim", guidance_scale=1.0),
]


def test_as_a_loop_of_diffusers_modules_alone_and_among_unlike_lanes(
    engine: Engine, run_together: RunTogether, sd15_pipeline: Any, encode_sd15: Encode
) -> None:
    work = [(request, texts(encode_sd15, request)) for request in LANES]
    expected = {request.lane_id: by_diffusers(sd15_pipeline, request, text) for request, text in work}
    pinned = [(dataclasses.replace(request, reproducible=True), text) for request, text in work]
    alone = [run_together(engine, [item])[0] for item in pinned]
    before = engine.stats()
    together = run_together(engine, pinned)
    after = engine.stats()
    assert_close(alone + together, expected)
    assert_close([run_together(engine, [item])[0] for item in work[:2]], expected)  # in a bucket of their own
    assert after.steps_total - before.steps_total == 6, "the lanes did not share their steps"
    for one, other in zip(alone, together, strict=True):
        assert one.latents is not None
        assert other.latents is not None
        assert one.latents.tobytes() == other.latents.tobytes(), one.lane_id


ALL, ATTENTION = Lora("all", 1.0), Lora("attention", -1.5)
WITH_LORAS = [
    lane("one each", Region(LEFT, loras=(ALL,)), Region(RIGHT, loras=(ATTENTION,)), base_weight=0.3),
    lane("beside the image's", Region(LEFT, loras=(ALL, ATTENTION)), Region(RIGHT), loras=(ATTENTION,)),
    lane("without the image's", Region(part(0, 40, 8, 64), loras=()), loras=(ALL,), sampler="dpmpp_2m"),
    lane("unguided", Region(LEFT, loras=(Lora("all", 0.5),)), Region(RIGHT), guidance_scale=1.0, base_weight=0.2),
    lane("no LoRAs", Region(LEFT), Region(RIGHT)),
    lane("plain", loras=(ALL,)),
    lane("plainer"),
]


def test_loras_of_their_own_are_merged_weights_for_their_prompts_alone(
    engine: Engine, run_together: RunTogether, parts: dict[str, Parts], sd15_pipeline: Any, encode_sd15: Encode
) -> None:
    def unet(loras: tuple[Lora, ...]) -> torch.nn.Module:
        return merged(sd15_pipeline.unet, *((parts[lora.name]["unet"], lora.weight) for lora in loras))

    work = [(dataclasses.replace(request, reproducible=True), texts(encode_sd15, request)) for request in WITH_LORAS]
    expected, without = {}, {}
    for request, text in work:
        own = (request.loras, *(request.loras if one.loras is None else one.loras for one in request.regions))
        expected[request.lane_id] = by_diffusers(sd15_pipeline, request, text, [unet(loras) for loras in own])
        without[request.lane_id] = by_diffusers(sd15_pipeline, request, text, [unet(request.loras)] * len(own))
    assert (expected["one each"] - without["one each"]).abs().max() > 0.1  # they make a difference
    alone = [run_together(engine, [item])[0] for item in work]
    together = run_together(engine, work)
    assert_close(alone + together, expected)
    for one, other in zip(alone, together, strict=True):
        assert one.latents is not None
        assert other.latents is not None
        assert one.latents.tobytes() == other.latents.tobytes(), one.lane_id
    assert [tuple(result.lora_hashes) for result in together] == [
        ("all", "attention"), ("attention", "all"), ("all",), ("all",), (), ("all",), (),
    ]  # fmt: skip
    at_once = [(dataclasses.replace(request, reproducible=False), text) for request, text in work]
    assert_close(run_together(engine, at_once), expected)


def test_a_lane_goes_on_only_with_the_same_loras_of_regions(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    request = lane("x", Region(LEFT, loras=(ALL,)), Region(RIGHT), state_every=3, reproducible=True)
    text = texts(encode_sd15, request)
    listener = Listener()
    engine.submit(request, text, listener)
    whole = listener.outcome()
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    (resumed,) = run_together(engine, [(dataclasses.replace(request, resume=state), text)])
    assert isinstance(whole, DenoiseResult)
    assert whole.latents is not None
    assert resumed.latents is not None
    assert resumed.latents.tobytes() == whole.latents.tobytes()
    for regions in (
        (Region(LEFT), Region(RIGHT)),
        (Region(LEFT, loras=(Lora("all", 0.9),)), Region(RIGHT)),
        (Region(LEFT), Region(RIGHT, loras=(ALL,))),
    ):
        with pytest.raises(StateRefused, match="another loras"):
            run_together(engine, [(dataclasses.replace(request, resume=state, regions=regions), text)])


def test_sdxl(engine: Engine, run_together: RunTogether, sdxl_pipeline: Any, encode_sdxl: Encode) -> None:
    request = lane("xl", Region(LEFT), Region(RIGHT, 0.5), checkpoint="sdxl", sampler="euler", base_weight=0.2)
    text = dataclasses.replace(texts(encode_sdxl, request), negative=encode_sdxl("dull").positive)
    expected = by_diffusers(sdxl_pipeline, request, text)
    assert_close(run_together(engine, [(request, text)]), {"xl": expected})


def test_four_regions_share_their_forwards(engine: Engine, run_together: RunTogether, encode_sd15: Encode) -> None:
    quarters = [Region(part(top, top + 32, left, left + 32)) for top in (0, 32) for left in (0, 32)]
    request = lane("quarters", *quarters)
    before = engine.stats()
    run_together(engine, [(request, texts(encode_sd15, request))])
    after = engine.stats()
    assert after.steps_total - before.steps_total == request.steps
    assert after.rows_total - before.rows_total == request.steps * (1 + 4 + 1)


def test_one_everywhere_is_the_prompt_alone(engine: Engine, run_together: RunTogether, encode_sd15: Encode) -> None:
    """To the bit, in a bucket of one size."""
    request = lane("x", Region(EVERYWHERE), reproducible=True, guidance_rescale=0.4)
    plain = lane("x", reproducible=True, guidance_rescale=0.4)
    (drawn,) = run_together(engine, [(request, texts(encode_sd15, request))])
    (expected,) = run_together(engine, [(plain, encode_sd15(PROMPTS[1]))])
    assert drawn.latents is not None
    assert expected.latents is not None
    assert np.array_equal(drawn.latents, expected.latents)


PICTURE = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
SAME = ("a grey cat", "a red circle", "a red circle")


@pytest.mark.parametrize(
    "changes",
    [
        {"image": PICTURE, "strength": 0.6},
        {"image": PICTURE, "mask": part(0, 32, 8, 40), "strength": 1.0},
        {"image": PICTURE, "mask": part(0, 32, 8, 40), "strength": 0.5},
        {"checkpoint": "lcm", "sampler": "lcm", "guidance_scale": 4.0},
        {"tiling": True},
        {"sampler": "webui_dpmpp_2m"},
    ],
)
def test_of_one_prompt_they_are_that_prompt(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode, changes: dict[str, Any]
) -> None:
    """From an image, inpainted, with a distilled checkpoint and more."""
    request = lane("x", Region(LEFT), Region(RIGHT), **changes)
    plain = lane("x", **changes)
    (drawn,) = run_together(engine, [(request, texts(encode_sd15, request, SAME))])
    (expected,) = run_together(engine, [(plain, encode_sd15(SAME[1]))])
    assert expected.latents is not None
    assert_close([drawn], {"x": torch.from_numpy(expected.latents)})


def test_a_refiner_goes_on_with_them(engine: Engine, run_together: RunTogether, encode_sdxl: Encode) -> None:
    def drawn(*regions: Region) -> DenoiseResult:
        request = lane("x", *regions, checkpoint="sdxl", steps=10, denoising_end=0.6)
        text = texts(encode_sdxl, request, SAME) if regions else encode_sdxl(SAME[1])
        (first,) = run_together(engine, [(request, text)])
        then = dataclasses.replace(
            request,
            checkpoint="refiner",
            denoising_start=0.6,
            denoising_end=1.0,
            latents=first.latents,
            generator_state=first.generator_state,
        )
        return run_together(engine, [(then, text)])[0]

    expected = drawn().latents
    assert expected is not None
    assert_close([drawn(Region(LEFT), Region(RIGHT))], {"x": torch.from_numpy(expected)})


def test_a_lane_goes_on_only_with_the_same_regions(
    engine: Engine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    request = lane("x", Region(LEFT), Region(RIGHT), reproducible=True, state_every=3, sampler="dpmpp_2m")
    text = texts(encode_sd15, request)
    listener = Listener()
    engine.submit(request, text, listener)
    whole = listener.outcome()
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    (resumed,) = run_together(engine, [(dataclasses.replace(request, resume=state), text)])
    assert isinstance(whole, DenoiseResult)
    assert whole.latents is not None
    assert resumed.latents is not None
    assert resumed.latents.tobytes() == whole.latents.tobytes()
    for changes in (
        {"regions": (Region(LEFT), Region(EVERYWHERE))},
        {"regions": (Region(LEFT), Region(RIGHT, 0.9))},
        {"base_weight": 0.1},
    ):
        with pytest.raises(StateRefused, match="another conditions"):
            run_together(engine, [(dataclasses.replace(request, resume=state, **changes), text)])


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"regions": (Region(LEFT[:32]),)}, "regions", r"uint8 \(32, 64\), expected uint8 \(64, 64\)"),
        ({"regions": (Region(LEFT), Region(RIGHT))}, "regions", "the texts are of 2 prompts, there are 2 regions"),
        ({"composed_prompts": 1}, None, "the texts are of 2 prompts"),
    ],
)
def test_what_cannot_be_drawn_fails_its_lane_alone(
    engine: Engine, encode_sd15: Encode, changes: dict[str, Any], field: str | None, reason: str
) -> None:
    request = lane("x", Region(LEFT))
    text = texts(encode_sd15, request)
    beside, bad = Listener(), Listener()
    engine.submit(lane("beside"), encode_sd15("x"), beside)
    engine.submit(dataclasses.replace(request, **changes), text, bad)
    error = bad.outcome()
    assert isinstance(error, InvalidRequest)
    assert error.field == field
    with pytest.raises(InvalidRequest, match=reason):
        raise error
    assert isinstance(beside.outcome(), DenoiseResult)
