"""What a model's defaults and limits make of a request, what is refused and how it is said."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint, UnknownSampler
from deployments.engine.samplers.registry import taken_steps
from serve_app.config.settings import Settings
from serve_app.planning.plan import plan_generation
from serve_app.planning.resolve import Resolution, resolve
from serve_app.schemas.generation_request import GenerationRequest, LoraRequest
from serve_app.schemas.resolved import HiresInput, ResolvedGeneration
from serve_app.schemas.validation import validated


def resolution(settings: Settings, **fields: Any) -> Resolution:
    return resolve(validated(GenerationRequest, {"prompt": "a red circle", **fields}), settings, drawn_seed=77)


def resolved(settings: Settings, **fields: Any) -> ResolvedGeneration:
    return resolution(settings, **fields).generation


def test_defaults_are_the_models(settings: Settings) -> None:
    generation = resolved(settings)
    assert generation.model_dump() == {
        "prompt": "a red circle",
        "negative_prompt": "",
        "prompt_2": None,
        "negative_prompt_2": None,
        "model": "demo-sd15",
        "n": 1,
        "seed": 77,
        "steps": 25,
        "guidance_scale": 7.5,
        "guidance_rescale": 0.0,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "clip_skip": 0,
        "width": 256,
        "height": 256,
        "sampler": "dpmpp_2m",
        "eta": None,
        "s_churn": 0.0,
        "s_tmin": 0.0,
        "s_tmax": None,
        "s_noise": 1.0,
        "variation_seed": 0,
        "variation_strength": 0.0,
        "freeu_s1": 1.0,
        "freeu_s2": 1.0,
        "freeu_b1": 1.0,
        "freeu_b2": 1.0,
        "noise_width": 0,
        "noise_height": 0,
        "noise_seed_delta": 0,
        "tiling": False,
        "refiner": None,
        "switch_at": None,
        "output_format": "png",
        "reproducible": False,
        "priority": "normal",
        "timeout_s": 600.0,
        "safety": "block",
        "preview": False,
        "image": None,
        "hires": None,
        "loras": (),
        "controlnets": (),
        "references": (),
        "regions": (),
        "details": (),
        "base_weight": 0.0,
        "vae": None,
        "pinned": {},
        "ingredients": 0,
    }


def test_a_model_with_a_refiner_uses_it_unless_told_not_to(settings: Settings) -> None:
    assert resolved(settings, model="demo-sdxl").refiner == "demo-sdxl-refiner"
    assert resolved(settings, model="demo-sdxl").switch_at == 0.8
    assert resolved(settings, model="demo-sdxl", refiner=True).switch_at == 0.8
    assert resolved(settings, model="demo-sdxl", refiner={"switch_at": 0.5}).switch_at == 0.5
    assert resolved(settings, model="demo-sdxl", refiner=False).refiner is None


def test_guidance_is_rescaled_as_the_model_says_unless_told_otherwise(raw_settings: dict[str, Any]) -> None:
    raw_settings["models"]["demo-sd15"]["defaults"]["guidance_rescale"] = 0.7
    settings = Settings.model_validate(raw_settings)
    assert resolved(settings).guidance_rescale == 0.7
    assert resolved(settings, guidance_rescale=0.0).guidance_rescale == 0.0
    assert resolved(settings, guidance_scale=1).guidance_rescale == 0.0


def test_guidance_in_a_part_of_the_schedule(settings: Settings) -> None:
    generation = resolved(settings, guidance_interval={"start": 0.25, "end": 0.75})
    assert (generation.guidance_start, generation.guidance_end) == (0.25, 0.75)
    assert resolved(settings, guidance_interval={"end": 0.5}).guidance_start == 0.0


def test_a_second_pass_is_twice_as_large_and_otherwise_as_the_first(settings: Settings) -> None:
    generation = resolved(settings, hires={}, steps=20, scheduler="euler")
    assert generation.hires == HiresInput(
        width=512, height=512, upscaler="latent", strength=0.7, steps=29, sampler="euler"
    )
    assert generation.hires.taken_steps == 20


@pytest.mark.parametrize(
    ("hires", "size"),
    [
        ({"scale": 1.3}, (328, 248)),
        ({"width": 384}, (384, 288)),
        ({"height": 384}, (512, 384)),
        ({"width": 384, "height": 288}, (384, 288)),
    ],
)
def test_sizes_of_a_second_pass(settings: Settings, hires: dict[str, Any], size: tuple[int, int]) -> None:
    generation = resolved(settings, width=256, height=192, hires=hires)
    assert generation.hires is not None
    assert (generation.hires.width, generation.hires.height) == size


@given(steps=st.integers(10, 50), strength=st.floats(0.05, 1.0))
def test_a_second_pass_takes_its_steps_whatever_the_strength(
    demo_settings: Settings, steps: int, strength: float
) -> None:
    generation = resolved(demo_settings, hires={"steps": steps, "strength": strength, "scale": 1.5})
    assert generation.hires is not None
    assert generation.hires.taken_steps == steps


def test_a_second_pass_by_another_model_has_that_one_s_limits_and_loras(
    raw_settings: dict[str, Any], tmp_path: Path
) -> None:
    models = raw_settings["models"]
    raw_settings["loras"] = {"folder": str(tmp_path)}
    models["other"] = {**models["demo-sd15"], "loras": [{"name": "always", "weight": 0.5}]}
    models["other"]["limits"] = {**models["demo-sd15"]["limits"], "max_hires_pixels": 1024 * 1024}
    settings = Settings.model_validate(raw_settings)
    hires = {"model": "other", "scale": 4.0}
    generation = resolved(
        settings, prompt="a cat <lora:style:0.7>", loras=[{"name": "first"}], hires=hires, width=256, height=256
    )
    assert generation.hires is not None
    assert (generation.hires.model, generation.hires.width) == ("other", 1024)
    assert [lora.name for lora in generation.loras] == ["first", "style"]
    assert generation.hires.loras == (LoraRequest(name="always", weight=0.5), LoraRequest(name="style", weight=0.7))
    same = resolved(settings, hires={"model": "demo-sd15"}).hires
    assert same is not None
    assert (same.model, same.loras) == (None, None)


def test_a_second_pass_by_a_model_of_one_text_encoder_reads_no_second_text(settings: Settings) -> None:
    first = {"model": "demo-sdxl", "width": 256, "height": 256, "prompt": "a cat", "prompt_2": "a dog"}
    second = {"model": "demo-sd15", "upscaler": "lanczos", "scale": 1.5}
    hires = resolved(settings, **first, hires=second).hires  # type: ignore[arg-type]
    assert hires is not None
    assert hires.texts(guided=True) == {"prompt": "a cat", "prompt_2": None}


def test_the_limits_of_both_passes_hold(raw_settings: dict[str, Any]) -> None:
    models = raw_settings["models"]
    narrow = {"limits": {"guidance_scale": {"min": 1, "max": 3}}, "defaults": {"guidance_scale": 2}}
    models["other"] = {**models["demo-sd15"], **narrow}
    settings = Settings.model_validate(raw_settings)
    with pytest.raises(InvalidRequest, match=r"hires\.model other") as refused:
        resolved(settings, guidance_scale=5, hires={"model": "other"})
    assert refused.value.field == "guidance_scale"


def test_controlnets_steer_models_of_one_family(settings: Settings) -> None:
    request = {
        "controlnets": [{"model": "edges", "image": "aGVsbG8="}],
        "hires": {"model": "demo-sdxl", "upscaler": "lanczos"},
    }
    with pytest.raises(InvalidRequest, match="demo-sdxl of sdxl") as refused:
        resolved(settings, **request)
    assert refused.value.field == "controlnets"


def test_a_model_leaves_its_refiner_out_of_two_passes(settings: Settings) -> None:
    generation = resolved(settings, model="demo-sdxl", width=256, height=256, hires={"scale": 1.5})
    assert generation.refiner is None


def test_a_second_pass_may_have_a_bound_of_its_own(raw_settings: dict[str, Any]) -> None:
    raw_settings["models"]["demo-sd15"]["limits"]["max_hires_pixels"] = 1024 * 1024
    settings = Settings.model_validate(raw_settings)
    assert resolved(settings, width=512, height=512, hires={}).hires is not None
    with pytest.raises(InvalidRequest, match="at most 1048576 for this model"):
        resolved(settings, width=512, height=512, hires={"scale": 2.5})


def test_n_images_get_successive_seeds(settings: Settings) -> None:
    assert resolved(settings, n=3, seed=5).seeds == (5, 6, 7)
    assert resolved(settings, n=2).seeds == (77, 78)


def test_loras_of_the_request_and_of_its_prompts(settings: Settings) -> None:
    def worn(**fields: Any) -> list[tuple[str, float]]:
        return [(lora.name, lora.weight) for lora in resolved(settings, model="demo-sdxl", **fields).loras]

    assert worn() == []
    assert worn(prompt="a<lora:x:0.5> <lora:y><lora:x:0.25>", prompt_2="b <lora:z:-1>") == [
        ("x", 0.75),
        ("y", 1.0),
        ("z", -1.0),
    ]
    both = worn(prompt="a <lora:x:0.5><lora:y:2>", loras=[{"name": "z"}, {"name": "x", "weight": 0.1}])
    assert both == [("z", 1.0), ("x", 0.1), ("y", 2.0)]
    generation, shown = resolution(settings, loras=[{"name": "z", "weight": 2}])
    assert ResolvedGeneration.model_validate(generation.model_dump(mode="json")) == generation
    assert shown[-1] == "z"


def test_a_lora_s_weight_in_the_text_encoders(settings: Settings) -> None:
    def worn(**fields: Any) -> list[tuple[str, tuple[float, float]]]:
        return [(lora.name, lora.weights) for lora in resolved(settings, **fields).loras]

    assert worn(prompt="a <lora:x:0.5:0.25><lora:x:0.5>") == [("x", (0.75, 1.0))]
    assert worn(loras=[{"name": "x", "weight": 0.5, "text_weight": 0}]) == [("x", (0.5, 0.0))]
    for prompt in ("a <lora:x:6:1><lora:x:6:1>", "a <lora:x:1:6><lora:x:1:6>"):
        with pytest.raises(InvalidRequest, match="weight of 12 in all"):
            resolved(settings, prompt=prompt)


def test_a_model_s_own_loras_come_first(raw_settings: dict[str, Any]) -> None:
    raw_settings["loras"] = {"folder": "loras"}
    raw_settings["models"]["demo-sd15"]["loras"] = [{"name": "lcm", "weight": 0.8}, {"name": "detail"}]
    settings = Settings.model_validate(raw_settings)

    def worn(**fields: Any) -> list[tuple[str, float]]:
        return [(lora.name, lora.weight) for lora in resolved(settings, **fields).loras]

    assert worn() == [("lcm", 0.8), ("detail", 1.0)]
    assert worn(model="demo-sdxl") == []
    eight = [{"name": f"{n}"} for n in range(8)]
    assert worn(loras=eight)[:3] == [("lcm", 0.8), ("detail", 1.0), ("0", 1.0)]
    # told again by a manifest, or by an infotext's tags: the same, in the same order
    assert worn(prompt="a <lora:z:2><lora:detail:0.5><lora:lcm:0.8>") == [("lcm", 0.8), ("detail", 0.5), ("z", 2.0)]
    assert worn(prompt="a <lora:lcm:2>", loras=[{"name": "lcm", "weight": 0.7}])[0] == ("lcm", 0.7)
    refused = [
        ({"loras": [{"name": "lcm", "weight": 0}]}, "loras", "'lcm' belongs to the model"),
        ({"prompt": "a <lora:lcm:1><lora:lcm:-1>"}, "prompt", "'lcm' belongs to the model"),
        ({"loras": [*eight, {"name": "8"}]}, "loras", "9 LoRAs are named, at most 8"),
    ]
    for fields, field, said in refused:
        with pytest.raises(InvalidRequest, match=said) as caught:
            resolved(settings, **fields)
        assert caught.value.field == field


def test_any_spelling_of_a_sampler(settings: Settings) -> None:
    assert resolved(settings, scheduler="DPM++ 2M Karras").sampler == "dpmpp_2m_karras"
    assert resolved(settings, scheduler="EulerAncestralDiscreteScheduler").sampler == "euler_a"


def test_a_resolved_generation_survives_its_store(settings: Settings) -> None:
    generation = resolved(settings, model="demo-sdxl", n=2)
    assert ResolvedGeneration.model_validate(generation.model_dump(mode="json")) == generation


@pytest.mark.parametrize("prompt", ["a (cat", "cat) ]", ":-) [", "a: b | c", "\\", "[]", "()", "[a:b", "(" * 20])
def test_unbalanced_brackets_are_no_error(settings: Settings, prompt: str) -> None:
    assert resolved(settings, prompt=prompt, negative_prompt=prompt).prompt == prompt


def test_what_is_shown_is_read_through_the_marks(settings: Settings) -> None:
    shown = resolution(
        settings, model="demo-sdxl", prompt="(na)(ked:1.2) [re|blu]e [a:b:2]", prompt_2="x\\y BREAK z"
    ).shown_texts
    assert shown == (
        "(na)(ked:1.2) [re|blu]e [a:b:2]",
        "naked ree a",
        "naked blue a",
        "naked ree b",
        "naked blue b",
        "x\\y BREAK z",
        "xy z",
    )


def test_what_a_second_pass_alone_shows_is_shown_too(settings: Settings) -> None:
    shown = resolution(settings, prompt="[a:na(ked):1.5]", steps=10, hires={"scale": 1.5}).shown_texts
    assert shown == ("[a:na(ked):1.5]", "a", "naked")


BAD: list[tuple[dict[str, Any], str | None, list[str]]] = [
    ({"prompt": 3}, "prompt", ["3"]),
    ({"prompt": None}, "prompt", ["None"]),
    ({"prompt": ""}, "prompt", []),
    ({"prompt": "  \n"}, "prompt", ["empty"]),
    ({"prompt": "x" * 2001}, "prompt", ["2001", "2000"]),
    ({"negative_prompt": "x" * 2001}, "negative_prompt", ["2001", "2000"]),
    ({"prompt": "a (b:11)"}, "prompt", ["11", "0..10"]),
    ({"prompt": "(" * 40}, "prompt", ["brackets more than 32 deep"]),
    ({"prompt": "[" + "|".join("abcdefghijklmnopqrstuvwxyz") + "]"}, "prompt", ["16 different texts"]),
    ({"prompt": "<lora:a:6>" * 2}, "prompt", ["'a'", "12 in all", "-10..10"]),
    ({"prompt": "".join(f"<lora:{n}>" for n in range(9))}, "prompt", ["9 LoRAs", "at most 8"]),
    ({"negative_prompt": "b <lora:a>"}, "negative_prompt", ["'a'", "name it in prompt or in loras"]),
    ({"loras": {"name": "a"}}, "loras", ["object"]),
    ({"loras": ["a"]}, "loras.0", ["'a'"]),
    ({"loras": [{"name": "a", "weight": 10.5}]}, "loras.0.weight", ["10.5", "less than or equal to 10"]),
    ({"loras": [{"name": "a", "weight": -11}]}, "loras.0.weight", ["-11"]),
    ({"loras": [{"name": "a", "weight": float("nan")}]}, "loras.0.weight", ["nan"]),
    ({"loras": [{"name": "a", "weight": "1"}]}, "loras.0.weight", ["'1'"]),
    ({"loras": [{"weight": 1}]}, "loras.0.name", ["missing"]),
    ({"loras": [{"name": ""}]}, "loras.0.name", []),
    ({"loras": [{"name": "a", "strength": 1}]}, "loras.0.strength", ["unknown field", "weight"]),
    ({"loras": [{"name": "a"}, {"name": "a"}]}, "loras.1.name", ["'a' twice"]),
    ({"loras": [{"name": f"{n}"} for n in range(9)]}, "loras", ["9 LoRAs", "at most 8"]),
    ({"prompt": "a <lora:style:x>"}, "prompt", ["<lora:name:weight>"]),
    ({"negative_prompt": "a (b:-1)"}, "negative_prompt", ["-1", "0..10"]),
    ({"prompt_2": "a"}, "prompt_2", ["two text encoders", "demo-sd15"]),
    ({"negative_prompt_2": ""}, "negative_prompt_2", ["two text encoders"]),
    ({"model": "demo-sdxl", "prompt_2": ""}, "prompt_2", []),
    ({"model": "demo-sdxl", "prompt_2": "x" * 2001}, "prompt_2", ["2001", "2000"]),
    ({"model": "demo-sdxl", "prompt_2": "(a:11)"}, "prompt_2", ["11"]),
    ({"model": "demo-sdxl", "negative_prompt_2": "<lora:x>"}, "negative_prompt_2", ["name it in prompt or in loras"]),
    ({"clip_skip": -1}, "clip_skip", ["-1"]),
    ({"clip_skip": 11}, "clip_skip", ["11", "0..10"]),
    ({"clip_skip": 1.0}, "clip_skip", ["1.0"]),
    ({"prompt": "half \ud800"}, "prompt", ["lone surrogate"]),
    ({"prompt": "nul \x00"}, "prompt", ["NUL"]),
    ({"prompt": "half \ud83d"}, "prompt", ["lone surrogate"]),
    ({"half \ud800": 1}, None, ["isn't a string"]),
    ({"promt": "x"}, "promt", ["unknown field", "prompt"]),
    ({"model": 1}, "model", ["1"]),
    ({"model": "nope"}, "model", ["nope", "demo-sd15"]),
    ({"model": "demo-sdxl-refiner"}, "model", ["refines"]),
    ({"model": "../../etc/passwd"}, "model", ["passwd"]),
    ({"n": 0}, "n", ["0"]),
    ({"n": 11}, "n", ["11", "1..10"]),
    ({"n": True}, "n", ["True"]),
    ({"n": "2"}, "n", ["'2'"]),
    ({"n": 1.0}, "n", ["1.0"]),
    ({"n": 10**400}, "n", ["digits"]),
    ({"seed": -1}, "seed", ["-1"]),
    ({"seed": 2**63}, "seed", [str(2**63)]),
    ({"seed": 2**63 - 1, "n": 2}, "seed", ["2**63"]),
    ({"seed": 1.5}, "seed", ["1.5"]),
    ({"steps": 9}, "steps", ["9", "10..50"]),
    ({"steps": 51}, "steps", ["51", "10..50"]),
    ({"steps": "25"}, "steps", ["'25'"]),
    ({"steps": False}, "steps", ["False"]),
    ({"guidance_scale": 0.5}, "guidance_scale", ["0.5", "1..20"]),
    ({"guidance_scale": 20.5}, "guidance_scale", ["20.5", "1..20"]),
    ({"guidance_scale": float("nan")}, "guidance_scale", ["nan"]),
    ({"guidance_scale": float("inf")}, "guidance_scale", ["inf"]),
    ({"guidance_scale": 10**400}, "guidance_scale", []),
    ({"guidance_scale": True}, "guidance_scale", ["True"]),
    ({"guidance_rescale": 1.5}, "guidance_rescale", ["1.5"]),
    ({"guidance_rescale": 0.5, "guidance_scale": 1}, "guidance_rescale", ["no effect without guidance"]),
    ({"guidance_interval": {"start": 0.5}, "guidance_scale": 1}, "guidance_interval", ["no effect without guidance"]),
    ({"guidance_interval": {"start": 0.7, "end": 0.3}}, "guidance_interval", ["0.7..0.3", "none of 25 steps"]),
    ({"guidance_interval": {"start": 0.5, "end": 0.51}}, "guidance_interval", ["none of 25 steps"]),
    ({"guidance_interval": {"start": 1.0}}, "guidance_interval.start", ["1.0"]),
    ({"prompt": "a AND b", "guidance_scale": 1}, "guidance_scale", ["AND", "needs guidance", "is 1"]),
    ({"prompt": "a AND b", "guidance_interval": {"end": 0.5}}, "guidance_interval", ["AND", "every step"]),
    ({"hires": {"prompt": "a AND b"}, "guidance_scale": 1}, "guidance_scale", ["AND", "needs guidance"]),
    ({"prompt": " AND ".join("abcdefgh")}, "prompt", ["joins 8 prompts", "at most 7"]),
    ({"prompt": "a AND b:-11"}, "prompt", ["the weight -11", "-10..10"]),
    ({"guidance_interval": {"from": 0.1}}, "guidance_interval.from", ["unknown field", "start"]),
    ({"hires": {"scale": 1.0}}, "hires.scale", ["1.0"]),
    ({"hires": {"scale": 1.01}}, "hires", ["is 256x256, the first pass 256x256", "larger"]),
    ({"hires": {"width": 128}}, "hires", ["128x128", "larger"]),
    ({"variation_strength": 0.5}, "variation_strength", ["variation_seed"]),
    ({"variation_seed": 5}, "variation_seed", ["variation_strength"]),
    ({"variation_seed": 2**63 - 1, "variation_strength": 0.5, "n": 2}, "variation_seed", ["2**63"]),
    ({"noise_width": 256}, "noise_width", ["noise_height"]),
    ({"noise_width": 130, "noise_height": 128}, "noise_width", ["130", "multiple of 8"]),
    ({"noise_width": 256, "noise_height": 4096}, "noise_height", ["4096", "8..512"]),
    ({"hires": {"width": 300}}, "hires.width", ["300", "multiple of 8"]),
    ({"hires": {"width": 512, "scale": 2.0}}, "hires.scale", ["leave one out"]),
    ({"hires": {"scale": 4.0}}, "hires.width", ["1024", "128..512"]),
    ({"hires": {"width": 1 << 62}}, "hires.width", ["128..512"]),
    ({"hires": {"upscaler": "magic"}}, "hires.upscaler", ["magic"]),
    ({"hires": {"steps": 60}}, "hires.steps", ["60", "1..50"]),
    ({"hires": {"strength": 0.01}}, "hires.strength", ["2500", "1000"]),
    ({"hires": {"strength": 5e-324}}, "hires.strength", ["inf"]),
    ({"hires": {"sampler": "magic"}}, "hires.sampler", ["magic"]),
    ({"hires": {"at": 1}}, "hires.at", ["unknown field", "upscaler"]),
    ({"hires": {"scale": 1.5}, "model": "demo-sdxl", "refiner": True}, "refiner", ["can't be combined"]),
    ({"hires": {"model": "magic"}}, "hires.model", ["magic", "demo-sdxl"]),
    ({"hires": {"model": "demo-sdxl-refiner"}}, "hires.model", ["only refines"]),
    ({"hires": {"model": "demo-sdxl"}}, "hires.upscaler", ["latent", "demo-sd15 is of family sd15", "lanczos"]),
    ({"width": 64}, "width", ["64", "128..512"]),
    ({"width": 520}, "width", ["520", "128..512"]),
    ({"width": 257}, "width", ["257", "multiple of 8"]),
    ({"height": 1 << 62}, "height", ["128..512"]),
    ({"model": "demo-sdxl", "width": 512, "height": 512}, "width", ["262144", "196608"]),
    ({"scheduler": "magic"}, "scheduler", ["magic", "dpmpp_2m"]),
    ({"scheduler": 4}, "scheduler", ["4"]),
    ({"refiner": True}, "refiner", ["no refiner"]),
    ({"refiner": {"switch_at": 0.5}}, "refiner", ["no refiner"]),
    ({"model": "demo-sdxl", "refiner": {"switch_at": 1.5}}, "refiner.switch_at", ["1.5"]),
    ({"model": "demo-sdxl", "refiner": {"switch_at": 0.99}}, "refiner.switch_at", ["0.99", "0.04..0.96"]),
    ({"model": "demo-sdxl", "refiner": {"at": 0.5}}, "refiner.at", ["unknown field", "switch_at"]),
    ({"model": "demo-sdxl", "refiner": "yes"}, "refiner", ["yes"]),
    ({"output_format": "gif"}, "output_format", ["gif", "png"]),
    ({"reproducible": "true"}, "reproducible", ["true"]),
    ({"priority": "urgent"}, "priority", ["urgent", "interactive"]),
    ({"timeout_s": 0}, "timeout_s", ["0"]),
    ({"timeout_s": 1e9}, "timeout_s", ["3600"]),
    ({"safety": "off"}, "safety", ["weaker", "block"]),
    ({"safety": "flag"}, "safety", ["weaker"]),
    ({"preview": 1}, "preview", ["1"]),
]


@pytest.mark.parametrize(("fields", "field", "said"), BAD)
def test_bad_fields_are_named_with_value_and_range(
    settings: Settings, fields: dict[str, Any], field: str | None, said: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolved(settings, **fields)
    assert refused.value.field == field
    assert all(word in str(refused.value) for word in said), str(refused.value)
    assert len(str(refused.value)) < 1000


def test_unknown_names_have_their_own_errors(settings: Settings) -> None:
    with pytest.raises(UnknownCheckpoint):
        resolved(settings, model="nope")
    with pytest.raises(UnknownSampler):
        resolved(settings, scheduler="nope")


def test_a_stricter_safety_mode_may_be_asked_for(raw_settings: dict[str, Any]) -> None:
    flagging = Settings.model_validate({**raw_settings, "safety": {"mode": "flag"}})
    assert resolved(flagging, safety="block").safety == "block"
    with pytest.raises(InvalidRequest, match="weaker"):
        resolved(flagging, safety="off")


def test_a_service_without_a_classifier_says_so(raw_settings: dict[str, Any]) -> None:
    unchecked = Settings.model_validate({**raw_settings, "safety": {"mode": "off"}})
    assert resolved(unchecked).safety == "off"
    with pytest.raises(InvalidRequest, match="doesn't check images"):
        resolved(unchecked, safety="block")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=10), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(GenerationRequest.model_fields)) | st.text(max_size=8), json_values))
def test_whatever_json_says_it_is_resolved_or_refused(demo_settings: Settings, fields: dict[str, Any]) -> None:
    try:
        generation = resolve(validated(GenerationRequest, fields), demo_settings, drawn_seed=1).generation
    except InvalidRequest as error:
        f"{error}{error.field}".encode()  # and it can be sent
    else:
        assert generation.prompt == fields["prompt"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"scheduler": "euler", "eta": 0.5}, "eta"),
        ({"scheduler": "webui_euler", "eta": 0.5}, "eta"),
        ({"scheduler": "webui_dpmpp_2m", "s_noise": 1.1}, "s_noise"),
        ({"scheduler": "webui_euler", "s_churn": 2000.0}, "s_churn"),
        ({"scheduler": "webui_ddim_cfgpp", "guidance_scale": 1.0}, "guidance_scale"),
    ],
)
def test_numbers_that_a_sampler_has_not_are_refused(settings: Settings, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolved(settings, **fields)
    assert caught.value.field == field


def test_numbers_of_a_sampler(settings: Settings) -> None:
    generation = resolved(settings, scheduler="webui_euler", s_churn=2.0, s_tmax=9.0, s_noise=1.0)
    assert (generation.s_churn, generation.s_tmax, generation.s_noise, generation.eta) == (2.0, 9.0, 1.0, None)
    assert resolved(settings, scheduler="euler", s_churn=0.0, s_noise=1.0).s_churn == 0  # nothing is asked for


def test_a_second_pass_of_the_web_ui_s_takes_the_steps_that_were_asked_for(settings: Settings) -> None:
    """Of a schedule as long as the web UI's: steps / strength, rounded down."""
    for steps, strength, whole in ((20, 0.7, 28), (20, 0.5, 40), (23, 0.8, 28), (12, 1.0, 12), (15, 0.3, 50)):
        hires = {"steps": steps, "strength": strength, "sampler": "webui_euler"}
        generation = resolved(settings, hires=hires)
        assert generation.hires is not None
        assert (generation.hires.steps, generation.hires.taken_steps) == (whole, steps)
        second = plan_generation(generation, settings).stages[1]
        assert second.strength is not None
        assert taken_steps("webui_euler", whole, second.strength) == steps
