"""Plans: which stages a generation takes, and what each is asked for."""

from pathlib import Path
from typing import Any

import numpy as np

from deployments.engine.checkpoints.spec import AddedCheckpoint, CheckpointSpec
from deployments.engine.parameters import NO_FREEU, FreeU
from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import DenoiseResult, Priority, StageTimings
from serve_app.config.models import AddedModel, allowed_sizes
from serve_app.config.settings import Settings
from serve_app.planning.plan import DenoiseStage, Plan, plan_generation
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated


def planned(settings: Settings, **fields: Any) -> Plan:
    request = validated(GenerationRequest, {"prompt": "a red circle", **fields})
    return plan_generation(resolve(request, settings, drawn_seed=7).generation, settings)


def stage(plan: Plan, name: str, checkpoint: str, **fields: Any) -> DenoiseStage:
    return DenoiseStage(name, checkpoint, **{**plan.operation.parameters(), **fields})


def test_sd15_is_one_stage(settings: Settings) -> None:
    plan = planned(settings)
    assert plan.stages == (stage(plan, "sd15", "demo-sd15"),)


def test_sdxl_hands_over_to_its_refiner(settings: Settings) -> None:
    plan = planned(settings, model="demo-sdxl")
    assert plan.stages == (
        stage(plan, "sdxl_base", "demo-sdxl", denoising_end=0.8, output="latents"),
        stage(plan, "sdxl_refiner", "demo-sdxl-refiner", denoising_start=0.8),
    )


def test_freeu_is_of_every_pass_but_the_refiner_s(settings: Settings) -> None:
    plan = planned(settings, model="demo-sdxl", freeu={"b1": 1.5})
    assert [plan.lane(one).freeu for one in plan.stages] == [FreeU(0.9, 0.2, 1.5, 1.4), NO_FREEU]
    plan = planned(settings, freeu={}, hires={"upscaler": "lanczos"})
    assert [plan.lane(one).freeu for one in plan.stages] == [FreeU(0.9, 0.2, 1.3, 1.4)] * 2


def test_sdxl_base_alone(settings: Settings) -> None:
    plan = planned(settings, model="demo-sdxl", refiner=False)
    assert plan.stages == (stage(plan, "sdxl_base", "demo-sdxl"),)


def test_the_checkpoint_of_an_added_model_travels_with_every_stage(settings: Settings) -> None:
    source = {"family": "sd15", "source": "/srv/new.safetensors", "addition": "0" * 24 + "1234abcd", "ready": True}
    new = AddedModel.model_validate({**source, "defaults": {"width": 256, "height": 256}})
    both = settings.model_copy(update={"models": {**settings.models, "new": new}})
    expected = AddedCheckpoint(
        CheckpointSpec(family="sd15", source="/srv/new.safetensors"), allowed_sizes([new.limits])
    )
    plan = planned(both, model="new", hires={"upscaler": "lanczos"})
    assert plan.operation.model == "new"
    assert plan.hires_encoding is not None
    for one in plan.stages:
        lane = plan.lane(one)
        assert (lane.checkpoint, lane.added) == (one.checkpoint, one.added) == ("new@1234abcd", expected)
    for encoding in (plan.encoding, plan.hires_encoding):
        assert (encoding.checkpoint, encoding.spec) == ("new@1234abcd", expected.spec)
    second = planned(both, hires={"upscaler": "lanczos", "model": "new"})
    assert [(one.checkpoint, one.added) for one in second.stages] == [("demo-sd15", None), ("new@1234abcd", expected)]
    assert second.hires_encoding is not None
    assert (second.encoding.spec, second.hires_encoding.spec) == (None, expected.spec)


def test_a_second_pass_is_a_second_stage_on_the_same_checkpoint(settings: Settings) -> None:
    plan = planned(settings, hires={"strength": 0.5, "steps": 10}, steps=20, preview=True)
    hires = plan.operation.hires
    assert hires is not None
    second_pass = {"width": 512, "height": 512, "steps": 20, "sampler": hires.sampler}
    assert plan.stages == (
        stage(plan, "sd15", "demo-sd15", output="latents"),
        stage(plan, "sd15", "demo-sd15", strength=0.5, hires=hires, **second_pass),
    )
    assert [round(one.steps * one.share) for one in plan.stages] == [20, 10]
    assert plan.hires_encoding is not None
    assert (plan.encoding.steps, plan.encoding.skipped, plan.encoding.before) == (20, 0, 0)
    second = plan.hires_encoding
    assert (second.steps, second.skipped, second.before) == (10, 10, 20)
    request = plan.lane(plan.stages[1], seed=4)
    assert (request.width, request.steps, request.enlarge, request.preview_every) == (512, 20, "latent", 2)
    assert second.checkpoint == "demo-sd15"
    assert planned(settings, hires={"upscaler": "nearest"}).stages[0].output == "image"
    assert planned(settings).hires_encoding is None


def test_a_second_pass_by_another_model_is_that_one_s_stage(settings: Settings) -> None:
    plan = planned(settings, hires={"model": "demo-sdxl", "upscaler": "lanczos"}, width=128, height=128)
    first, second = plan.stages
    assert (first.stage, first.checkpoint, first.output) == ("sd15", "demo-sd15", "image")
    assert (second.stage, second.checkpoint, second.width) == ("sdxl_base", "demo-sdxl", 256)
    assert plan.hires_encoding is not None
    assert (plan.encoding.checkpoint, plan.hires_encoding.checkpoint) == ("demo-sd15", "demo-sdxl")


def test_the_base_s_encoding_serves_the_refiner_too(settings: Settings) -> None:
    encoding = planned(settings, model="demo-sdxl", negative_prompt="blue").encoding
    assert (encoding.checkpoint, encoding.prompt, encoding.negative_prompt) == ("demo-sdxl", "a red circle", "blue")


def test_without_guidance_there_is_no_negative_prompt(settings: Settings) -> None:
    assert planned(settings, guidance_scale=1, negative_prompt="blue").encoding.negative_prompt is None


def test_a_composed_prompt_takes_a_row_for_each_of_its_prompts(settings: Settings) -> None:
    composed = "a red circle AND a star :0.5 <lora:AND:1>"
    (one,) = planned(settings, prompt=composed, negative_prompt="x AND y").stages
    assert (one.composed_prompts, one.rows) == (2, 3)
    chosen = planned(settings, prompt=composed, hires={"prompt": "a AND b AND c"})
    assert [stage.composed_prompts for stage in chosen.stages] == [2, 3]
    assert [stage.composed_prompts for stage in planned(settings, prompt=composed, hires={}).stages] == [2, 2]
    refined = planned(settings, prompt=composed, model="demo-sdxl")
    assert [refined.lane(stage).composed_prompts for stage in refined.stages] == [2, 2]


def test_what_the_encoder_is_asked_for(settings: Settings) -> None:
    asked = {"prompt_2": "x", "negative_prompt_2": "y", "clip_skip": 1, "steps": 20}
    encoding = planned(settings, model="demo-sdxl", **asked).encoding
    assert (encoding.prompt_2, encoding.negative_prompt_2, encoding.clip_skip, encoding.steps) == ("x", "y", 1, 20)
    unguided = planned(settings, model="demo-sdxl", guidance_scale=1, **asked).encoding
    assert (unguided.prompt_2, unguided.negative_prompt_2) == ("x", None)


def test_the_base_and_the_encoders_wear_loras(settings: Settings) -> None:
    chosen = planned(settings, model="demo-sdxl", prompt="x <lora:a:0.5><lora:b:0>", loras=[{"name": "c"}])
    assert chosen.encoding.loras == (Lora("c", 1.0), Lora("a", 0.5))
    assert [chosen.lane(stage).loras for stage in chosen.stages] == [(Lora("c", 1.0), Lora("a", 0.5)), ()]


def test_text_encoders_wear_loras_at_their_own_weight(settings: Settings) -> None:
    chosen = planned(settings, prompt="x <lora:a:0.5:0.25><lora:b:0:1><lora:c:1:0>")
    assert chosen.encoding.loras == (Lora("a", 0.5), Lora("c", 1.0))
    assert chosen.stages[0].loras == (Lora("a", 0.25), Lora("b", 1.0), Lora("c", 0.0))


def result(**fields: Any) -> DenoiseResult:
    timings = StageTimings(0.0, 0.0, 0.0, 0.0)
    return DenoiseResult("lane", 4, "demo", "0", "best-effort", timings, "cpu", "float32", **fields)


def test_the_request_to_a_stage(settings: Settings) -> None:
    chosen = planned(settings, model="demo-sdxl", n=2, seed=3, steps=20, priority="interactive", preview=True)
    before = result(latents=np.zeros((4, 32, 32), np.float32), generator_state=np.zeros(16, np.uint8))
    request = chosen.lane(chosen.stages[1], lane_id="lane", seed=4, tenant="alice", timeout_s=9.0, before=before)
    assert (request.checkpoint, request.seed, request.denoising_start) == ("demo-sdxl-refiner", 4, 0.8)
    assert request.latents is before.latents
    assert request.generator_state is before.generator_state
    assert (request.sampler, request.steps, request.timeout_s) == ("euler_a", 20, 9.0)
    assert request.tenant == "alice"
    assert (request.priority, request.preview_every, request.output) == (Priority.INTERACTIVE, 2, "image")


def test_a_second_pass_draws_its_noise_anew(settings: Settings) -> None:
    before = result(latents=np.zeros((4, 32, 32), np.float32), generator_state=np.zeros(16, np.uint8))
    latent = planned(settings, hires={})
    request = latent.lane(latent.stages[1], before=before)
    assert request.latents is before.latents
    assert request.generator_state is None
    picture = np.zeros((64, 64, 3), np.uint8)
    pixels = planned(settings, hires={"upscaler": "lanczos"})
    request = pixels.lane(pixels.stages[1], before=result(image=picture), image=picture)
    assert (request.image is picture, request.latents, request.generator_state) == (True, None, None)


def test_a_detail_is_a_stage_for_each_part_that_may_be_found(raw_settings: dict[str, Any], tmp_path: Path) -> None:
    raw_settings["detectors"] = {"folder": str(tmp_path)}
    settings = Settings.model_validate(raw_settings)
    own = {"prompt": "a [face:hand:0.5] AND b <lora:c:0.5>", "strength": 0.5, "steps": 20, "width": 384}
    details = [{"detector": "faces", "max_count": 2, **own}, {"detector": "hands", "combine": "all"}]
    plan = planned(settings, details=details, negative_prompt="x", loras=[{"name": "a"}], tiling=True, seed=3, steps=10)
    whole, *parts = plan.stages
    assert plan.whole_stages == (whole,)
    assert [(part.detail, part.part, part.expected) for part in parts] == [(0, 0, True), (0, 1, False), (1, 0, True)]
    assert [(part.width, part.height, part.steps, part.strength) for part in parts] == [
        (384, 256, 20, 0.5), (384, 256, 20, 0.5), (256, 256, 10, 0.4)
    ]  # fmt: skip
    assert [part.composed_prompts for part in parts] == [2, 2, 1]
    assert {part.tiling for part in parts} == {False}
    assert [part.loras for part in parts] == [(Lora("a", 1.0), Lora("c", 0.5))] * 2 + [(Lora("a", 1.0),)]
    first, second = (plan.detail_encoding(number) for number in (0, 1))
    assert (first.prompt, first.negative_prompt, first.steps, first.skipped) == (own["prompt"], "x", 10, 10)
    assert (second.prompt, second.steps, second.skipped, second.loras) == ("a red circle", 4, 6, (Lora("a", 1.0),))
    assert plan.encodings == (plan.encoding, first, second)
    picture, mask = np.zeros((256, 384, 3), np.uint8), np.zeros((256, 384), np.uint8)
    lane = plan.lane(parts[0], seed=9, image=picture, mask=mask)
    assert (lane.seed, lane.image is picture, lane.mask is mask, lane.masked_content) == (9, True, True, "image")


def test_a_detail_of_a_refined_or_enlarged_image_is_the_first_model_s(
    raw_settings: dict[str, Any], tmp_path: Path
) -> None:
    raw_settings["detectors"] = {"folder": str(tmp_path)}
    settings = Settings.model_validate(raw_settings)
    detail = [{"detector": "faces", "max_count": 1, "guidance_scale": 1.0}]
    *_, part = planned(settings, model="demo-sdxl", details=detail).stages
    assert (part.stage, part.checkpoint, part.denoising_end, part.output) == ("sdxl_base", "demo-sdxl", 1.0, "image")
    plan = planned(settings, hires={"prompt": "larger"}, details=detail, negative_prompt="x")
    *_, part = plan.stages
    assert (part.checkpoint, part.width, part.hires, part.rows) == ("demo-sd15", 256, None, 1)
    assert (plan.detail_encoding(0).prompt, plan.detail_encoding(0).negative_prompt) == ("a red circle", None)
