"""Settings refuse what they don't know or can't mean, and say which key it was."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.memory.limits import AllowedSizes, RequestSize
from serve_app.config.check import ServeFile
from serve_app.config.settings import Settings


def changed(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    return {**raw, key: changed(raw.get(key, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("device", "gpu", "device"),
        ("devices", "cpu", "devices"),
        ("default_model", "missing", "default_model"),
        ("default_model", "demo-sdxl-refiner", "default_model"),
        ("models", {}, "models"),
        ("models.demo-sd15.famly", "sd15", "models.demo-sd15.famly"),
        ("models.demo-sd15.family", "sd3", "models.demo-sd15.family"),
        ("models.demo-sd15.refiner", "demo-sdxl-refiner", "refiner"),
        ("models.demo-sdxl.refiner", "missing", "models.demo-sdxl.refiner"),
        ("models.demo-sdxl.refiner", "demo-sd15", "models.demo-sdxl.refiner"),
        ("models.demo-sd15.defaults.sampler", "k_magic", "models.demo-sd15.defaults.sampler"),
        ("models.demo-sd15.defaults.steps", 60, "defaults.steps"),
        ("models.demo-sd15.defaults.width", 250, "defaults.width"),
        ("models.demo-sdxl.limits.max_pixels", 64, "max_pixels"),
        ("models.demo-sd15.limits.steps", {"min": 9, "max": 8}, "models.demo-sd15.limits.steps"),
        ("models.demo-sdxl.switch_at", 1.0, "models.demo-sdxl.switch_at"),
        ("stages.sd15.num_gpu", 0.5, "stages.sd15.num_gpu"),
        ("stages.sd15.preload", ["demo-sdxl"], "stages.sd15.preload"),
        ("stages.router.num_gpus", 1, "router.num_gpus"),
        ("openai.aliases", {"dall-e-3": "missing"}, "openai.aliases.dall-e-3"),
        ("openai.aliases", {"dall-e-3": "demo-sdxl-refiner"}, "openai.aliases.dall-e-3"),
        ("openai.aliases", {"demo-sdxl": "demo-sd15"}, "openai.aliases"),
        ("safety.mode", "on", "safety.mode"),
        ("safety.classifier", None, "safety"),
        ("safety.prompt_patterns", ["fine", "(broken"], "prompt_patterns.1"),
        ("safety.threshold", float("nan"), "safety.threshold"),
        ("jobs.lease_s", 1, "lease_s"),
        ("jobs.database_url", "postgresql://host/darkroom", "database_url must begin with"),
        ("models.demo-sd15.scheduler.prediction_type", "sample", "prediction_type"),
        ("models.demo-sd15.scheduler.beta_start", 0.1, "beta_start"),
        ("models.demo-sd15.scheduler.rescale_betas_zero_snr", True, "needs prediction_type v_prediction"),
        (
            "models.demo-sd15.scheduler",
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            "needs timestep_spacing trailing",
        ),
        (
            "models.demo-sd15",
            {
                "family": "sd15",
                "source": "sd15",
                "defaults": {"sampler": "heun"},
                "scheduler": {
                    "prediction_type": "v_prediction",
                    "rescale_betas_zero_snr": True,
                    "timestep_spacing": "trailing",
                },
            },
            "heun doesn't support zero terminal SNR",
        ),
        ("models.demo-sd15.loras", [{"name": "a"}], "models.demo-sd15.loras: needs the folder of LoRAs"),
        ("models.demo-sd15.loras", [{"name": "a"}, {"name": "a"}], "'a' is listed twice"),
        ("models.demo-sd15.loras", [{"name": "a", "weight": 0}], "weight is 0"),
        ("models.demo-sd15.loras", [{"name": f"{n}"} for n in range(9)], "at most 8"),
        ("models.demo-sdxl-refiner.loras", [{"name": "a"}], "a refiner takes none"),
        ("models.demo-sd15.defaults.guidance_rescale", 1.1, "guidance_rescale"),
        ("images.url", "ftp://host/images", "url must be a folder"),
        ("limits.default_timeout_s", 4000, "default_timeout_s"),
    ],
)
def test_a_wrong_setting_is_named(raw_settings: dict[str, Any], path: str, value: object, named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(changed(raw_settings, path, value))
    assert named in str(refused.value)


def test_a_refusal_repeats_no_password(raw_settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="database_url") as refused:
        Settings.model_validate(changed(raw_settings, "jobs", {"database_url": "mysql://me:secret@host/jobs"}))
    assert "secret" not in str(refused.value)


def test_a_model_s_name_is_a_url_part(raw_settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="a/b"):
        Settings.model_validate(changed(raw_settings, "models.a/b", {"family": "sd15", "source": "x"}))


def test_safety_can_be_off_by_saying_so(raw_settings: dict[str, Any]) -> None:
    off = changed(raw_settings, "safety", {"mode": "off", "classifier": None})
    assert Settings.model_validate(off).safety.mode == "off"
    assert Settings.model_validate(raw_settings).safety.mode == "block"


def test_each_stage_gets_its_part_of_the_catalogue(settings: Settings) -> None:
    assert settings.checkpoints("sd15") == {"demo-sd15": CheckpointSpec(family="sd15", source="sd15")}
    assert list(settings.checkpoints("sdxl_refiner")) == ["demo-sdxl-refiner"]
    assert list(settings.generating()) == ["demo-sd15", "demo-sdxl"]


def test_what_a_refiner_may_be_asked_is_what_the_model_may_that_it_refines(raw_settings: dict[str, Any]) -> None:
    limits = {"width": {"min": 130, "max": 512}, "guidance_scale": {"min": 2.0, "max": 9.0}, "max_pixels": 512 * 256}
    raw_settings["models"]["demo-sdxl"]["limits"] |= limits
    raw_settings["models"]["demo-sd15"]["limits"] |= {"max_hires_pixels": 1024 * 1024}
    settings = Settings.model_validate(raw_settings)
    of_sdxl = AllowedSizes(RequestSize(136 * 128, guided=True), RequestSize(512 * 256, guided=True))
    assert settings.allowed_sizes("sdxl_base") == {"demo-sdxl": of_sdxl}
    assert settings.allowed_sizes("sdxl_refiner") == {"demo-sdxl-refiner": of_sdxl}
    of_sd15 = AllowedSizes(RequestSize(128 * 128, guided=False), RequestSize(1024 * 1024, guided=True))
    assert settings.allowed_sizes("sd15") == {"demo-sd15": of_sd15}


def test_a_refiner_s_default_size_is_that_of_the_model_that_it_refines(raw_settings: dict[str, Any]) -> None:
    raw_settings["models"]["demo-sdxl"]["defaults"] = {"width": 128, "height": 512}
    settings = Settings.model_validate(raw_settings)
    assert settings.default_sizes("sdxl_base") == {"demo-sdxl": (128, 512)}
    assert settings.default_sizes("sdxl_refiner") == {"demo-sdxl-refiner": (128, 512)}
    assert settings.default_sizes("sd15") == {"demo-sd15": (256, 256)}


def test_the_defaults_sampler_is_stored_by_its_canonical_name(settings: Settings) -> None:
    assert settings.models["demo-sdxl"].defaults.sampler == "euler_a"


def sections(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section of the settings and those within it."""
    yield root
    for field in root.model_fields.values():
        for part in (field.annotation, *_parts(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from sections(part)


def _parts(annotation: object) -> Iterator[object]:
    for part in get_args(annotation):
        yield part
        yield from _parts(part)


@pytest.mark.parametrize("section", dict.fromkeys(sections(ServeFile)))
def test_every_setting_is_documented(section: type[BaseModel]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []
    without_example = [name for name, field in section.model_fields.items() if field.default is None]
    assert [name for name in without_example if not section.model_fields[name].examples] == []
