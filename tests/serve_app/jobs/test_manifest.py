"""The numbers that draw an image go whole through every floor."""

import json
from dataclasses import fields, replace

import pytest

from deployments.engine.errors import StateRefused
from deployments.engine.parameters import DenoisingParameters
from deployments.engine.types import DenoiseRequest, DenoiseResult, StageTimings
from serve_app.config.settings import Settings
from serve_app.jobs.manifest import manifest_of
from serve_app.planning.plan import plan_generation, read_plan
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.manifest import Manifest
from serve_app.schemas.validation import validated
from tests.serve_app.stand_in_stages import state_after

NUMBERS = {
    "seed": 2**63 - 2,
    "steps": 31,
    "guidance_scale": 4.25,
    "guidance_rescale": 0.3,
    "guidance_start": 0.125,
    "guidance_end": 0.75,
    "width": 256,
    "height": 320,
    "sampler": "webui_heun",
    "eta": 0.5,
    "s_churn": 2.0,
    "s_tmin": 0.25,
    "s_tmax": 8.0,
    "s_noise": 1.25,
    "variation_seed": 2**62,
    "variation_strength": 0.5,
    "noise_width": 128,
    "noise_height": 192,
    "noise_seed_delta": 31337,
    "tiling": True,
    "freeu_s1": 0.875,
    "freeu_s2": 0.375,
    "freeu_b1": 1.125,
    "freeu_b2": 1.625,
}


def test_from_the_request_to_the_manifest(settings: Settings) -> None:
    assert {field.name for field in fields(DenoisingParameters)} == NUMBERS.keys()
    body = {**NUMBERS, "prompt": "x", "scheduler": NUMBERS["sampler"]}
    body["guidance_interval"] = {"start": body.pop("guidance_start"), "end": body.pop("guidance_end")}
    body["freeu"] = {factor: body.pop(f"freeu_{factor}") for factor in ("s1", "s2", "b1", "b2")}
    del body["sampler"]
    eta = body.pop("eta")  # no sampler has both an eta and an s_churn
    generation = resolve(validated(GenerationRequest, body), settings, drawn_seed=1).generation
    generation = generation.model_copy(update={"eta": eta})
    stored = json.loads(json.dumps(generation.model_dump(mode="json")))
    plan = plan_generation(generation, settings)
    assert read_plan(stored, settings) == plan
    lane = plan.lane(plan.stages[0])
    result = DenoiseResult(
        "lane", lane.seed, "sd15", "0", "best-effort", StageTimings(0.0, 0.0, 0.0, 0.0), "cpu", "float32",
        variation_seed=lane.variation_seed,
    )  # fmt: skip
    manifest = manifest_of(generation, [result], None)
    for one in (generation, lane, manifest, Manifest.model_validate_json(manifest.model_dump_json())):
        assert one.parameters() == NUMBERS


@pytest.mark.parametrize("name", NUMBERS)
def test_a_state_of_a_lane_with_another_number_is_refused(name: str) -> None:
    request = DenoiseRequest("lane", "sd15", **NUMBERS)  # type: ignore[arg-type]
    fingerprint = state_after(1, request).fingerprint
    changed = "ddim" if name == "sampler" else NUMBERS[name] / 2  # type: ignore[operator]
    other = replace(fingerprint, **{name: changed})  # type: ignore[arg-type]
    with pytest.raises(StateRefused, match=f"another {name}$"):
        state_after(1, request).check(other, steps=31, past_samples=1, past_outputs=1)
