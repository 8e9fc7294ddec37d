"""Regions of a request: what is filled in, what is refused and how it is said."""

from typing import Any

import pytest

from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import Settings
from serve_app.images.decode import read_mask
from serve_app.images.steering import SteeringSources
from serve_app.planning.plan import plan_generation
from serve_app.planning.resolve import Resolution, resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated
from tests.serve_app.images.pictures import sent, square

LEFT = {"x": 0.0, "y": 0, "width": 0.5, "height": 1}
STAR = {"prompt": "a (yellow:1.2) star", "box": LEFT}
MASK = sent(square(64, 64, 8, 8, 16))


def resolution(settings: Settings, *regions: dict[str, Any], **fields: Any) -> Resolution:
    request = validated(GenerationRequest, {"prompt": "a red circle", **fields, "regions": list(regions)})
    masks = [read_mask("mask", one.mask, 1 << 16) if one.mask else None for one in request.regions]
    return resolve(request, settings, drawn_seed=77, steering=SteeringSources(regions=masks))


def test_what_is_left_out(settings: Settings) -> None:
    generation = resolution(settings, STAR, {"prompt": "a ring", "mask": MASK, "weight": 2}).generation
    first, second = generation.regions
    assert (first.weight, first.mask_sha256, second.box, second.weight) == (1.0, None, None, 2.0)
    assert second.mask_sha256 is not None
    assert 0 < generation.base_weight < 1
    assert resolution(settings, STAR, base_weight=0).generation.base_weight == 0.0
    assert resolution(settings).generation.base_weight == 0.0


def test_each_is_a_row_of_every_stage(settings: Settings) -> None:
    plan = plan_generation(resolution(settings, STAR, STAR, hires={"prompt": "larger"}).generation, settings)
    assert [(stage.composed_prompts, stage.rows) for stage in plan.stages] == [(3, 4), (3, 4)]
    assert plan.encoding.regions == (STAR["prompt"],) * 2
    assert plan.hires_encoding is not None
    assert plan.hires_encoding.regions == plan.encoding.regions
    refined = plan_generation(resolution(settings, STAR, model="demo-sdxl").generation, settings)
    assert [stage.composed_prompts for stage in refined.stages] == [2, 2]
    assert [refined.lane(stage).base_weight for stage in refined.stages] == [refined.operation.base_weight] * 2
    unguided = plan_generation(resolution(settings, STAR, guidance_scale=1).generation, settings)
    assert [stage.rows for stage in unguided.stages] == [2]


def test_the_prompt_filter_and_the_log_see_them(settings: Settings) -> None:
    found = resolution(settings, STAR)
    assert {"a (yellow:1.2) star", "a yellow star"} <= set(found.shown_texts)
    assert STAR["prompt"] in found.generation.prompts


def test_comments_are_taken_out() -> None:
    request = GenerationRequest.model_validate({"prompt": "x", "regions": [{"prompt": "a star # or a ring"}]})
    assert request.without_comments().regions[0].prompt == "a star "


BAD: list[tuple[list[dict[str, Any]], dict[str, Any], str, str]] = [
    ([STAR] * 7, {}, "regions", "7 regions are sent, at most 6"),
    ([{"box": LEFT}], {}, "regions.0.prompt", "missing"),
    ([STAR, {**STAR, "prompt": " "}], {}, "regions.1.prompt", "is empty"),
    ([{**STAR, "prompt": "x" * 3000}], {}, "regions.0.prompt", "3000 characters"),
    ([{**STAR, "prompt": "a\x00"}], {}, "regions.0.prompt", "NUL"),
    ([{**STAR, "prompt": "(" * 40}], {}, "regions.0.prompt", "nests brackets"),
    ([{**STAR, "prompt": "a <lora:ink:6> <lora:ink:6>"}], {}, "regions.0.prompt", "'ink' has a weight of 12 in all"),
    ([{"prompt": "x"}], {}, "regions.0", "neither box nor mask"),
    ([{**STAR, "mask": MASK}], {}, "regions.0.mask", "box and mask"),
    ([{**STAR, "weight": 0}], {}, "regions.0.weight", "0"),
    ([{**STAR, "weight": 11}], {}, "regions.0.weight", "11"),
    ([{**STAR, "box": {**LEFT, "x": 0.6}}], {}, "regions.0.box", "beyond the image: x + width is 1.1"),
    ([{**STAR, "box": {**LEFT, "y": 0.1}}], {}, "regions.0.box", "beyond the image: y + height is 1.1"),
    ([{**STAR, "box": {**LEFT, "x": -0.1}}], {}, "regions.0.box.x", "-0.1"),
    ([{**STAR, "box": {**LEFT, "x": 1.0}}], {}, "regions.0.box.x", "1.0"),
    ([{**STAR, "box": {**LEFT, "width": 0}}], {}, "regions.0.box.width", "0"),
    ([{**STAR, "box": {**LEFT, "height": 0.03}}], {}, "regions.0.box.height", "7.68 of 256 pixels, at least 8"),
    ([{**STAR, "box": {"x": 0}}], {}, "regions.0.box.y", "missing"),
    ([{**STAR, "box": "left"}], {}, "regions.0.box", "left"),
    ([{**STAR, "references": []}], {}, "regions.0.references", "unknown field"),
    ([STAR], {"base_weight": 1.1}, "base_weight", "1.1"),
    ([], {"base_weight": 0.3}, "base_weight", "no effect without regions"),
    ([STAR], {"prompt": "a AND b"}, "regions", "AND"),
    ([STAR], {"hires": {"prompt": "a AND b"}}, "regions", "AND"),
]


@pytest.mark.parametrize(("regions", "fields", "field", "reason"), BAD)
def test_what_is_refused(
    settings: Settings, regions: list[dict[str, Any]], fields: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolution(settings, *regions, **fields)
    assert refused.value.field == field
    assert reason in refused.value.message


def test_a_box_up_to_the_edge_is_inside(settings: Settings) -> None:
    for start in (0.1, 0.3, 0.7):  # 1 - 0.7 and 0.7 are not 1 in floating point, and no client's fault
        resolution(settings, {"prompt": "x", "box": {"x": start, "y": start, "width": 1 - start, "height": 1 - start}})
