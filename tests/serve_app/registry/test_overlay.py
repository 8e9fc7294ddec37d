"""What the registry lays over the settings of the file: what it may change, and what it may not."""

from typing import Any

import pytest

from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import Settings
from serve_app.registry.entries import Entries, EntryKind
from serve_app.registry.overlay import check_change, laid_over, merged
from tests.serve_app.conftest import catalogue


def settings(**changes: Any) -> Settings:
    return Settings.model_validate({**catalogue(), **changes})


KEYED = {"access": {"keys_env": "DARKROOM_KEYS"}}


def with_models(**contents: dict[str, Any]) -> Entries:
    return Entries({name.replace("_", "-"): content for name, content in contents.items()})


def test_an_entry_changes_what_it_names_and_nothing_else() -> None:
    base = settings(**KEYED)
    limits = {"steps": {"min": 1, "max": 8}, "width": {"min": 128, "max": 320}}
    content = {"defaults": {"steps": 4, "sampler": "Euler a"}, "limits": limits, "tenants": ["alice"]}
    changed = laid_over(base, with_models(demo_sdxl=content)).settings
    model, before = changed.models["demo-sdxl"], base.models["demo-sdxl"]
    assert (model.defaults.steps, model.defaults.sampler, model.defaults.width) == (4, "euler_a", 256)
    assert (str(model.limits.steps), str(model.limits.width)) == ("1..8", "128..320")
    assert model.limits.height == before.limits.height
    assert model.tenants == ("alice",)
    assert all(getattr(changed, field) is getattr(base, field) for field in {"stages", "jobs", "access", "loras"})
    assert changed.models["demo-sd15"] == base.models["demo-sd15"]
    assert laid_over(base, Entries()).settings is base


def test_a_model_that_does_not_serve_and_its_aliases_are_seen_by_nobody() -> None:
    base = settings(aliases={"shapes": {"model": "demo-sdxl"}, "usual": {"model": "demo-sd15"}})
    assert list(base.seen_by(None).generating()) == ["demo-sd15", "demo-sdxl", "shapes", "usual"]
    changed = laid_over(base, with_models(demo_sdxl={"serving": False})).settings
    assert list(changed.seen_by(None).generating()) == ["demo-sd15", "usual"]
    assert "demo-sdxl" in changed.models


def test_an_alias_is_for_those_who_may_use_its_model() -> None:
    base = settings(**KEYED)
    entries = Entries({"demo-sdxl": {"tenants": ["alice"]}}, {"shapes": {"model": "demo-sdxl"}})
    changed = laid_over(base, entries).settings
    for tenant, seen in (("alice", True), (None, True), ("bob", False)):
        models = changed.seen_by(tenant).models
        assert ("shapes" in models, "demo-sdxl" in models) == (seen, seen)


@pytest.mark.parametrize(
    ("content", "message", "field"),
    [
        ({"defaults": {"steps": 60}}, r"defaults.steps \(60\) is outside limits.steps", None),
        ({"defaults": {"stepps": 6}}, "unknown field 'defaults.stepps'; fields: steps", "defaults.stepps"),
        ({"defaults": {"sampler": "none"}}, "unknown sampler", "defaults.sampler"),
        ({"limits": {"steps": {"min": 9, "max": 8}}}, r"min \(9\) is above max \(8\)", "limits.steps"),
        ({"limits": {"width": {"min": 128, "max": 1024}}}, "limits allow 524288 pixels, and the memory", "limits"),
        ({"limits": {"max_hires_pixels": 1 << 20}}, "limits allow 1048576 pixels, and the memory", "limits"),
        ({"tenants": []}, "tenants", "tenants"),
        ({"tenants": ["alice"]}, "default_model: 'demo-sd15' is limited to some tenants", None),
        ({"serving": False}, "default_model: 'demo-sd15' has serving: false", None),
    ],
)
def test_what_can_not_be_is_refused_with_its_reason(content: dict[str, Any], message: str, field: str | None) -> None:
    entries = with_models(demo_sd15=content)
    with pytest.raises(InvalidRequest, match=message) as refused:
        check_change(settings(**KEYED), entries, EntryKind.MODEL, "demo-sd15")
    assert refused.value.field == field


def test_tenants_need_keys() -> None:
    with pytest.raises(InvalidRequest, match="needs API keys"):
        check_change(settings(), with_models(demo_sdxl={"tenants": ["alice"]}), EntryKind.MODEL, "demo-sdxl")


def test_guidance_needs_memory_that_the_file_has_planned() -> None:
    raw = catalogue()
    raw["models"]["demo-sdxl"]["limits"]["guidance_scale"] = {"min": 1, "max": 1}
    raw["models"]["demo-sdxl"]["defaults"] = {"width": 256, "height": 256, "guidance_scale": 1}
    entries = with_models(demo_sdxl={"limits": {"guidance_scale": {"min": 1, "max": 9}}})
    with pytest.raises(InvalidRequest, match="allows guidance, and the memory is planned without"):
        check_change(Settings.model_validate(raw), entries, EntryKind.MODEL, "demo-sdxl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("shapes", {"model": "none"}, "unknown model 'none'"),
        ("shapes", {"model": "demo-sdxl-refiner"}, "unknown model 'demo-sdxl-refiner'"),
        ("demo-sdxl", {"model": "demo-sd15"}, "'demo-sdxl' is a model's own name"),
        ("dall-e-3", {"model": "demo-sd15"}, "'dall-e-3' is a model's own name, or an alias in every API"),
    ],
)
def test_an_alias_means_a_model_and_is_nothing_else_s_name(name: str, content: dict[str, Any], message: str) -> None:
    base = settings(openai={"aliases": {"dall-e-3": "demo-sdxl"}})
    with pytest.raises(InvalidRequest, match=message):
        check_change(base, Entries({}, {name: content}), EntryKind.ALIAS, name)


def test_what_the_file_fits_no_more_has_no_effect_and_a_reason() -> None:
    entries = Entries(
        {"gone": {"serving": False}, "demo-sd15": {"limits": {"width": {"min": 8, "max": 4096}}}},
        {"old": {"model": "gone"}, "usual": {"model": "demo-sd15"}},
    )
    overlay = laid_over(settings(), entries)
    assert overlay.problems.keys() == {
        (EntryKind.MODEL, "gone"),
        (EntryKind.MODEL, "demo-sd15"),
        (EntryKind.ALIAS, "old"),
    }
    assert "unknown model 'gone'" in overlay.problems[EntryKind.MODEL, "gone"]
    assert overlay.settings.models == settings().models
    assert overlay.settings.aliases.keys() == {"usual"}
    check_change(settings(), Entries(), EntryKind.MODEL, "gone")  # it may be forgotten


def test_what_is_kept_from_clients_stays_so_when_the_rest_fits_no_more() -> None:
    limits = {"max_hires_pixels": 1 << 24}
    entries = with_models(demo_sdxl={"limits": limits, "tenants": ["alice"]})
    restricted = laid_over(settings(**KEYED), entries)
    assert restricted.problems.keys() == {(EntryKind.MODEL, "demo-sdxl")}
    assert restricted.settings.models["demo-sdxl"].tenants == ("alice",)
    assert "demo-sdxl" not in restricted.settings.seen_by("bob").models
    without_keys = laid_over(settings(), entries).settings
    assert "demo-sdxl" not in without_keys.seen_by("").models
    drained = laid_over(settings(), with_models(demo_sdxl={"limits": limits, "serving": False})).settings
    assert "demo-sdxl" not in drained.seen_by("").models


def test_patches_add_up_and_null_is_the_file_s_value_again() -> None:
    content = merged({}, {"defaults": {"steps": 20, "width": 128}, "serving": False, "tenants": ["a"]})
    content = merged(content, {"defaults": {"steps": 30, "width": None}, "tenants": None})
    assert content == {"defaults": {"steps": 30}, "serving": False}
    assert merged(content, {"defaults": {"steps": None}, "serving": None}) == {}
    assert merged({"defaults": {"steps": 30}}, {"defaults": None}) == {}


def added(state: str = "ready", **changes: Any) -> dict[str, Any]:
    return {
        "settings": {"family": "sd15", "source": "/srv/new.safetensors", **changes},
        "state": state,
        "job": "0" * 24 + "1234abcd",
    }


def test_an_added_model_is_a_model_once_it_is_ready() -> None:
    change = {"defaults": {"steps": 12}, "serving": True, "limits": {"steps": {"min": 4, "max": 12}}}
    for state, serves in (("adding", False), ("ready", True), ("failed", False), ("removing", False)):
        entries = Entries({"new": change}, {"shapes": {"model": "new"}}, checkpoints={"new": added(state)})
        overlay = laid_over(settings(), entries)
        assert overlay.problems == {}
        model = overlay.settings.models["new"]
        assert (model.serves, model.defaults.steps, model.name_in_stages("new")) == (serves, 12, "new@1234abcd")
        assert ({"new", "shapes"} <= overlay.settings.seen_by(None).models.keys()) is serves
        # jobs that were accepted find it, whatever its state
        assert overlay.settings.models.keys() == settings().models.keys() | {"new"}


def test_an_added_model_that_the_file_does_not_fit_is_none() -> None:
    for name, changes, problem in (
        ("demo-sd15", {}, "is a model of the configuration file"),
        ("new", {"refiner": "gone"}, "only models of family sdxl"),
        ("new", {"tenants": ["alice"]}, "needs API keys"),
        ("dall-e-3", {}, "is a model's own name"),
    ):
        base = settings(openai={"aliases": {"dall-e-3": "demo-sdxl"}})
        overlay = laid_over(base, Entries(checkpoints={name: added(**changes)}))
        assert problem in overlay.problems[EntryKind.CHECKPOINT, name]
        assert overlay.settings.models == base.models
