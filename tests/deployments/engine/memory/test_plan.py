"""What is predicted is what is taken, and what can't be held is refused before it is tried."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch.profiler import ProfilerActivity, profile

from deployments.engine.batch import Batch
from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.loader import describe_denoiser, load_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.conditioning.controlnet import Controlnet
from deployments.engine.conditioning.controlnet_weights import ControlnetTrace
from deployments.engine.config import EngineSettings, MemoryPolicy
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.engine import Engine
from deployments.engine.errors import DoesNotFit
from deployments.engine.families.family import FamilyName
from deployments.engine.lanes.lane import Lane
from deployments.engine.memory.budget import MemoryBudget
from deployments.engine.memory.footprint import Footprint, compiling_bytes
from deployments.engine.memory.footprint_tracing import footprint_of
from deployments.engine.memory.limits import CELL, AllowedSizes, LargestSizes, RequestSize
from deployments.engine.memory.plan import POLICIES, MemoryPlan
from deployments.engine.memory.table import GIB
from deployments.engine.row_threads import RowThreads
from deployments.engine.types import MAX_CONTROLS, Conditioning, DenoiseRequest, DenoiseResult
from deployments.engine.unet import UnetInputs
from tests.deployments.engine.listening import Listener, ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]
CPU = torch.device("cpu")
SETTINGS = EngineSettings(device="cpu")
ONE_LANE = EngineSettings(device="cpu", max_lanes=1)
DEMOS: dict[FamilyName, str] = {"sd15": "demo-sd15", "sdxl": "demo-sdxl", "sdxl-refiner": "demo-sdxl-refiner"}


def demo(family: FamilyName) -> CheckpointSpec:
    return CheckpointSpec(family=family, source=f"package:demo_models/{DEMOS[family]}")


@functools.cache
def loaded(family: FamilyName) -> DenoiserWeights:
    weights = load_denoiser(demo(family), CPU, torch.float32)
    weights.unet.to(memory_format=torch.channels_last)
    weights.vae.to(memory_format=torch.channels_last)
    return weights


def predicted(family: FamilyName) -> Footprint:
    return footprint_of(describe_denoiser(demo(family)), SETTINGS, torch.float32)


def measured(forward: Callable[[], object]) -> int:
    """Most bytes at once that torch's allocator gave out, buffers of kernels among them."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("family", DEMOS)
def test_weights_are_counted_to_the_byte(family: FamilyName) -> None:
    weights, footprint = loaded(family), predicted(family)
    sizes = [sum(t.nbytes for t in model.state_dict().values()) for model in (weights.unet, weights.vae)]
    assert sizes == [footprint.unet, footprint.vae]
    half = footprint_of(describe_denoiser(demo(family)), SETTINGS, torch.bfloat16)
    assert [2 * half.unet, 2 * half.vae] == sizes


@pytest.mark.parametrize(("rows", "side"), [(2, 16), (4, 24)])
def test_a_step_takes_what_is_predicted(rows: int, side: int) -> None:
    unet = loaded("sd15").unet

    def step() -> object:
        sample = torch.zeros(rows, 4, side, side).to(memory_format=torch.channels_last)
        return unet(sample, torch.full((rows,), 500.0), torch.zeros(rows, 77, unet.config.cross_attention_dim))

    taken = measured(step)
    assert taken <= predicted("sd15").step(rows, side * side) <= 2 * taken


def test_a_step_that_two_controlnets_steer_takes_what_is_predicted() -> None:
    rows, side, unet = 2, 24, loaded("sd15").unet
    controlnet = ControlNetModel.from_unet(unet).eval().to(memory_format=torch.channels_last)
    steered = footprint_of(describe_denoiser(demo("sd15")), SETTINGS, torch.float32, [ControlnetTrace()])
    one = Controlnet("", controlnet, RowThreads(1), torch.channels_last)
    seen = torch.zeros(rows, unet.config.block_out_channels[0], side, side).to(memory_format=torch.channels_last)

    def step() -> object:
        sample = torch.zeros(rows, 4, side, side).to(memory_format=torch.channels_last)
        timesteps, text = torch.full((rows,), 500.0), torch.zeros(rows, 77, unet.config.cross_attention_dim)
        total = [torch.zeros_like(level) for level in one.residuals(UnetInputs(sample, timesteps, text), seen)]
        for _ in range(2):
            for sum_, level in zip(total, one.residuals(UnetInputs(sample, timesteps, text), seen), strict=True):
                sum_.add_(level)
        return unet(
            sample,
            timesteps,
            text,
            down_block_additional_residuals=total[:-1],
            mid_block_additional_residual=total[-1],
        )

    taken = measured(step)
    assert taken <= steered.step(rows, side * side) <= 2 * taken
    assert steered.step(rows, side * side) > predicted("sd15").step(rows, side * side)
    assert steered.lane(side * side) - predicted("sd15").lane(side * side) == MAX_CONTROLS * seen.nbytes // rows


def test_a_decode_takes_what_is_predicted() -> None:
    vae, side = loaded("sd15").vae, 24
    taken = measured(lambda: vae.decode(torch.zeros(2, 4, side, side)))
    assert taken <= predicted("sd15").decode(2, side * side) <= 2 * taken


def test_sliced_attention_pays_for_a_slice_of_the_scores_once(tiny_sd15: Path, needs: Footprint) -> None:
    cells = 64 * 64
    settings = EngineSettings(device="cpu", attention="sliced")
    sliced = footprint_of(
        describe_denoiser(CheckpointSpec(family="sd15", source=str(tiny_sd15))), settings, torch.float32
    )
    scores = cells**2 * 4  # of one of two heads
    assert sliced.step(1, cells) > needs.step(1, cells) + scores
    assert sliced.step(4, cells) - sliced.step(1, cells) == needs.step(4, cells) - needs.step(1, cells)


def test_a_vae_that_decodes_in_a_wider_type_is_there_in_both() -> None:
    spec, cells = demo("sdxl"), 32 * 32
    narrow, wide = (footprint_of(describe_denoiser(spec), SETTINGS, t) for t in (torch.float16, torch.float32))
    assert narrow.decode(1, cells) == pytest.approx(wide.decode(1, cells) + wide.vae, rel=1e-3)


def plan(
    source: Path,
    budget: int,
    *,
    catalogue: int = 1,
    allowed: AllowedSizes | None = None,
    offloads: bool = False,
    **settings: object,
) -> MemoryPlan:
    chosen = EngineSettings.model_validate({"device": "cpu", "max_lanes": 1} | settings)
    specs = {f"sd15-{n}": CheckpointSpec(family="sd15", source=str(source)) for n in range(catalogue)}
    return MemoryPlan(
        chosen,
        torch.float32,
        MemoryBudget(budget, "a test", "budget", offloads),
        specs,
        describe_denoiser,
        allowed={} if allowed is None else dict.fromkeys(specs, allowed),
    )


@pytest.fixture
def needs(tiny_sd15: Path) -> Footprint:
    """What the tiny SD1.5 takes."""
    return footprint_of(
        describe_denoiser(CheckpointSpec(family="sd15", source=str(tiny_sd15))), SETTINGS, torch.float32
    )


def for_step(needs: Footprint, rows: int, cells: int) -> int:
    """A budget to the byte, for the weights, one lane and a step."""
    return needs.weights + needs.lanes(ONE_LANE, cells) + needs.step(rows, cells)


def for_image(needs: Footprint, cells: int) -> int:
    """The same for all that an image with guidance needs."""
    return max(for_step(needs, 2, cells), needs.weights + needs.lanes(ONE_LANE, cells) + needs.decode(1, cells))


def test_rows_images_and_sizes_follow_from_the_budget(tiny_sd15: Path, needs: Footprint) -> None:
    cells = 64 * 64
    tight = plan(tiny_sd15, for_step(needs, 8, cells), decode_batch=4)
    assert tight.rows("sd15-0", cells) == 8
    assert tight.rows("sd15-0", cells // 4) == 16  # max_rows
    assert tight.rows("sd15-0", 256 * cells) == 1
    assert tight.images("sd15-0", 256 * cells) == 1
    sizes = tight.largest_sizes["sd15-0"]
    assert sizes.unguided > sizes.guided >= 64 * cells
    assert sizes.reproducible == sizes.guided
    assert sizes.guided > sizes.several[4] > sizes.several[8] >= 64 * cells
    more = plan(tiny_sd15, 2 * for_step(needs, 8, cells)).largest_sizes["sd15-0"]
    assert (more.unguided > sizes.unguided, more.decoded > sizes.decoded) == (True, True)


def test_the_process_that_compiles_has_room_on_a_gpu(tiny_sd15: Path, needs: Footprint) -> None:
    cells, compiling = 64 * 64, {"compile": {}}
    enough = for_step(needs, 8, cells)
    assert plan(tiny_sd15, enough, **compiling).rows("sd15-0", cells) == 8, "on a CPU nothing is its own"
    beside = enough + compiling_bytes(needs.unet)
    for budget, rows in ((beside, 8), (beside - 1, 4)):
        on_gpu = plan(tiny_sd15, budget, offloads=True, memory="resident", **compiling)
        assert on_gpu.rows("sd15-0", cells) == rows
        assert (on_gpu.table.limit, "for the process that compiles" in on_gpu.table.limit_origin) == (
            budget - compiling_bytes(needs.unet),
            True,
        )
    assert plan(tiny_sd15, enough, offloads=True, memory="model_offload", **compiling).table.limit == enough


def test_the_least_is_held_exactly(tiny_sd15: Path, needs: Footprint) -> None:
    cells = 16 * 16
    least = AllowedSizes(RequestSize(64 * cells, guided=True))
    enough = for_image(needs, cells)
    plan(tiny_sd15, enough, allowed=least).check_loading("sd15-0")
    with pytest.raises(DoesNotFit, match=r"at 16384 pixels.*UNet.*VAE.*limit is .*a test.*more budget.*16 bits"):
        plan(tiny_sd15, enough - 1, allowed=least).check_loading("sd15-0")


def test_weights_that_are_too_large_are_named(tiny_sd15: Path, needs: Footprint) -> None:
    with pytest.raises(DoesNotFit, match=r"the weights don't fit: the UNet \(.* MiB\) and the VAE \(.* MiB\)"):
        plan(tiny_sd15, needs.weights).check_loading("sd15-0")


def test_others_that_may_be_resident_take_their_room(tiny_sd15: Path, needs: Footprint) -> None:
    room_for_two = needs.weights + for_image(needs, 64)
    plan(tiny_sd15, room_for_two, catalogue=3, resident_checkpoints=2).check_loading("sd15-1")
    with pytest.raises(DoesNotFit, match="fewer resident_checkpoints"):
        plan(tiny_sd15, room_for_two, catalogue=3, resident_checkpoints=3).check_loading("sd15-1")


def test_one_that_is_added_leaves_the_others_their_largest_images(tiny_sd15: Path, needs: Footprint) -> None:
    largest = AllowedSizes(RequestSize(64 * 64), RequestSize(64 * 64, guided=True))
    spec = CheckpointSpec(family="sd15", source=str(tiny_sd15))
    for room, fits in ((needs.weights, True), (needs.weights - 1, False)):
        planned = MemoryPlan(
            EngineSettings.model_validate({"device": "cpu", "max_lanes": 1, "resident_checkpoints": 2}),
            torch.float32,
            MemoryBudget(for_image(needs, 64) + room, "a test", "budget"),
            (catalogue := {"sd15": spec}),
            describe_denoiser,
            allowed={"sd15": largest},
        )
        alone = planned.largest_sizes
        catalogue["new@1"] = spec
        planned.add("new@1", AllowedSizes())
        if fits:
            planned.check_loading("new@1")
            assert planned.largest_sizes.keys() == {"sd15", "new@1"}
            assert planned.largest_sizes["sd15"].guided < alone["sd15"].guided
        else:
            with pytest.raises(DoesNotFit, match="largest images of 'sd15' would fit no longer beside 'new@1'"):
                planned.check_loading("new@1")
        planned.remove("new@1")
        assert planned.largest_sizes == alone
        planned.check_loading("sd15")


def test_a_checkpoint_that_cannot_be_described_is_tried_again_at_its_loading(copy: Path) -> None:
    config = copy / "unet" / "config.json"
    text = config.read_text()
    config.write_text("{}")
    known = plan(copy, GIB)
    assert not known.largest_sizes
    known.check_loading("sd15-0")  # the loader says what is wrong
    config.write_text(text)
    known.check_loading("sd15-0")
    assert known.largest_sizes


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ({"guidance_scale": 1.0, "output": "latents"}, 400),
        ({"output": "latents"}, 300),
        ({"guidance_scale": 1.0, "output": "latents", "reproducible": True}, 200),
        ({"output": "image"}, 100),
        ({"output": "latents", "strength": 0.5}, 100),
        ({"output": "latents", "composed_prompts": 3}, 90),
        ({"output": "latents", "composed_prompts": 4}, 70),
        ({"output": "latents", "composed_prompts": 4, "guidance_scale": 1.0}, 90),
    ],
)
def test_each_kind_of_request_has_its_own_largest_size(kind: dict[str, Any], most: int) -> None:
    sizes = LargestSizes(
        unguided=400 * 64, guided=300 * 64, reproducible=200 * 64, decoded=100 * 64, several={4: 90 * 64, 8: 70 * 64}
    )
    sizes.check(ask(width=64, height=most, **kind))
    with pytest.raises(DoesNotFit, match=f"at most {most * 64} pixels") as refused:
        sizes.check(ask(width=64, height=most + 8, **kind))
    assert refused.value.field == "height"


def test_an_engine_refuses_at_once_what_it_has_no_memory_for(
    make_engine: MakeEngine, encode_sd15: Encode, needs: Footprint
) -> None:
    memory = for_image(needs, 32 * 32) / GIB
    engine = make_engine(memory_gib=memory, max_lanes=1, resident_checkpoints=1)
    listener, text = Listener(), encode_sd15("x")
    with pytest.raises(DoesNotFit, match="width is 2048: an image of 2048 x 256 doesn't fit") as refused:
        engine.submit(ask("large", width=2048, height=256), text, listener)
    assert refused.value.field == "width"
    engine.submit(ask("small", width=256, height=256), text, listener)
    assert isinstance(listener.outcome(), DenoiseResult)


def test_an_engine_loads_nothing_that_has_no_room(make_engine: MakeEngine, needs: Footprint) -> None:
    engine = make_engine(memory_gib=needs.weights / GIB / 2, resident_checkpoints=1)
    with pytest.raises(DoesNotFit, match=r"the limit is 0\.\d MiB \(memory_gib\).*more memory_gib"):
        engine.preload("sd15").result()
    assert engine.stats().loads_total == 0


def test_a_batch_has_no_more_rows_than_fit(
    make_engine: MakeEngine,
    run_together: RunTogether,
    encode_sd15: Encode,
    needs: Footprint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buckets: set[int] = set()
    step = Denoiser.step

    def watched(self: Denoiser, batch: Batch[Lane]) -> tuple[torch.Tensor, torch.Tensor]:
        buckets.add(batch.bucket)
        return step(self, batch)

    monkeypatch.setattr(Denoiser, "step", watched)
    lanes = {"max_lanes": 8}
    seven_more = needs.lanes(EngineSettings(**lanes), 32 * 32) - needs.lanes(ONE_LANE, 32 * 32)
    memory = for_step(needs, 4, 32 * 32) + seven_more
    engine = make_engine(memory_gib=memory / GIB, **lanes, resident_checkpoints=1)
    text = encode_sd15("x")
    run_together(engine, [(ask(f"{n}", width=256, height=256, steps=3, output="latents"), text) for n in range(5)])
    assert max(buckets) == 4


LARGE = AllowedSizes(largest=RequestSize(512 * 512, guided=True))


def enough_for(policy: MemoryPolicy, needs: Footprint, size: RequestSize) -> int:
    """A budget to the byte, for the policy and one image of that size."""
    cells = size.pixels // CELL
    lane = needs.lanes(ONE_LANE, cells)
    step = needs.unet_there(policy) + needs.step(2, cells)
    return lane + max(step, needs.vae_there(policy) + min(needs.decode(1, cells), needs.tiled_decode(cells)))


def test_policies_hold_ever_less(needs: Footprint) -> None:
    there = [needs.unet_there(policy) for policy in POLICIES]
    assert there == sorted(there, reverse=True)
    assert len(set(there)) == len(there)
    assert needs.vae_there("resident") == needs.weights > needs.vae_there("model_offload") == needs.vae


def test_the_fastest_policy_is_chosen_with_which_the_largest_image_fits(tiny_sd15: Path, needs: Footprint) -> None:
    size = RequestSize(64 * 64, guided=True)
    allowed = AllowedSizes(largest=size)
    budgets = [enough_for(policy, needs, size) for policy in POLICIES]
    distinct = [policy for number, policy in enumerate(POLICIES) if budgets[number] < min([1 << 62, *budgets[:number]])]
    assert distinct[:2] == ["resident", "model_offload"], "else the next lines say little"
    for policy in distinct:
        enough = enough_for(policy, needs, size)
        made = plan(tiny_sd15, enough, allowed=allowed, offloads=True)
        assert (made.policy, made.table.policy) == (policy, policy)
        assert made.largest_sizes["sd15-0"].guided >= size.pixels
        assert all(row.fits for row in made.table.rows)
        less = plan(tiny_sd15, enough - 1, allowed=allowed, offloads=True)
        assert POLICIES.index(less.policy) > POLICIES.index(policy) or "doesn't fit" in less.table.why


def test_on_the_cpu_nothing_is_offloaded_unasked(tiny_sd15: Path, needs: Footprint) -> None:
    assert plan(tiny_sd15, needs.weights, allowed=LARGE).policy == "resident"
    assert plan(tiny_sd15, needs.weights, allowed=LARGE, memory="group_offload").policy == "group_offload"


def test_what_is_offloaded_leaves_room_for_all_checkpoints(tiny_sd15: Path, needs: Footprint) -> None:
    budget = needs.weights + for_image(needs, 64)
    kept = plan(tiny_sd15, budget, catalogue=3, resident_checkpoints=3, memory="model_offload")
    kept.check_loading("sd15-1")
    with pytest.raises(DoesNotFit, match="fewer resident_checkpoints"):
        plan(tiny_sd15, budget, catalogue=3, resident_checkpoints=3, memory="resident").check_loading("sd15-1")


def test_a_refusal_names_the_next_policy(tiny_sd15: Path, needs: Footprint) -> None:
    with pytest.raises(DoesNotFit, match=r"What would help: .*memory: model_offload, vae\.tiling: auto"):
        plan(tiny_sd15, needs.weights, offloads=True, memory="resident", vae={"tiling": "never"}).check_loading(
            "sd15-0"
        )


def test_images_whose_decode_does_not_fit_are_decoded_in_tiles(tiny_sd15: Path, needs: Footprint) -> None:
    cells = 128 * 128
    budget = needs.weights + needs.lanes(ONE_LANE, cells) + needs.tiled_decode(cells)
    assert needs.tiled_decode(cells) < needs.decode(1, cells)
    made = plan(tiny_sd15, budget)
    assert made.tiled("sd15-0", cells)
    assert not made.tiled("sd15-0", 32 * 32)
    assert made.largest_sizes["sd15-0"].decoded == cells * CELL
    whole = plan(tiny_sd15, budget, vae={"tiling": "never"})
    assert not whole.tiled("sd15-0", cells)
    assert whole.largest_sizes["sd15-0"].decoded < cells * CELL
    assert plan(tiny_sd15, budget, vae={"tiling": "always"}).tiled("sd15-0", 32 * 32)


def test_without_a_largest_size_the_table_has_what_fits(tiny_sd15: Path, needs: Footprint) -> None:
    unet, vae = plan(tiny_sd15, 4 * needs.weights + for_image(needs, 32 * 32)).table.rows
    assert (unet.fits, vae.fits) == (True, True)
    assert vae.activations > needs.decode(1, 32 * 32)


def test_the_table_says_what_is_planned(tiny_sd15: Path, needs: Footprint, copy: Path) -> None:
    (copy / "unet" / "config.json").write_text("{}")
    specs = {name: CheckpointSpec(family="sd15", source=str(of)) for name, of in (("a", tiny_sd15), ("b", copy))}
    cells = 64 * 64
    allowed = {"a": AllowedSizes(largest=RequestSize(cells * CELL, guided=True))}
    settings = EngineSettings(device="cpu", max_lanes=2, max_rows=8)
    budget = MemoryBudget(GIB, "a test", "budget", offloads=True)
    table = MemoryPlan(settings, torch.float32, budget, specs, describe_denoiser, allowed=allowed).table
    unet, vae = table.rows
    assert (unet.weights, vae.weights, unet.on_device) == (needs.unet, needs.vae, needs.weights)
    assert unet.activations == needs.step(8, cells) + needs.lanes(settings, cells)
    assert vae.activations == needs.decode(1, cells) + needs.lanes(settings, cells)
    assert (unet.batch, table.unknown) == ("8 rows of 512 x 512 pixels", ("b",))
    lines = table.lines()
    assert lines[0] == "memory: resident (the largest image fits); the limit is 1.00 GiB, a test"
    assert [line.split()[:2] for line in lines[2:4]] == [["a", "UNet"], ["a", "VAE"]]
    assert lines[4] == "not planned, its configuration isn't there yet: b"
