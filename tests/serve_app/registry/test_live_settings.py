"""The present settings of several routers on one database."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import Settings
from serve_app.errors import StoreUnavailable, UnknownEntry
from serve_app.jobs.db.store import JobStore
from serve_app.registry.entries import Author, Entries, EntryKind
from serve_app.registry.live_settings import LiveSettings
from tests.serve_app.conftest import catalogue
from tests.serve_app.front import until

NOBODY = Author("", None)


def settings(**changes: Any) -> Settings:
    return Settings.model_validate({**catalogue(), **changes, "registry": {"poll_s": 0.05}})


@pytest.fixture
async def live(store: JobStore) -> AsyncIterator[LiveSettings]:
    live = LiveSettings(settings(), store.registry)
    await live.start()
    yield live
    await live.stop()


@pytest.fixture
async def other(other_store: JobStore) -> AsyncIterator[LiveSettings]:
    other = LiveSettings(settings(), other_store.registry)
    await other.start()
    yield other
    await other.stop()


async def test_a_change_is_seen_here_at_once_and_by_others_soon(live: LiveSettings, other: LiveSettings) -> None:
    await live.change_model("demo-sdxl", {"serving": False, "defaults": {"steps": 12}}, NOBODY)
    assert not live.settings.models["demo-sdxl"].serving
    await until(lambda: other.version == live.version)
    assert other.settings.models == live.settings.models
    await other.set_alias("shapes", {"model": "demo-sd15"}, NOBODY)
    await other.change_model("demo-sdxl", {"serving": None}, NOBODY)
    await until(lambda: live.version == 3)
    assert (
        live.entries
        == other.entries
        == Entries({"demo-sdxl": {"defaults": {"steps": 12}}}, dict(other.entries.aliases))
    )
    assert list(live.settings.seen_by(None).generating()) == ["demo-sd15", "demo-sdxl", "shapes"]
    await live.remove_alias("shapes", NOBODY)
    await until(lambda: "shapes" not in other.settings.aliases)
    live.check()


async def test_a_router_begins_with_what_was_changed_before(live: LiveSettings, other_store: JobStore) -> None:
    await live.set_alias("shapes", {"model": "demo-sdxl"}, NOBODY)
    late = LiveSettings(settings(), other_store.registry)
    assert late.settings.aliases == {}
    await late.look()
    assert late.settings.aliases.keys() == {"shapes"}


async def test_what_is_not_there_can_not_be_changed(live: LiveSettings) -> None:
    with pytest.raises(UnknownEntry, match="no model 'none'; models: demo-sd15"):
        await live.change_model("none", {"serving": False}, NOBODY)
    with pytest.raises(UnknownEntry, match="no alias 'none' was set at run time: it is nowhere"):
        await live.remove_alias("none", NOBODY)
    with pytest.raises(InvalidRequest):
        await live.change_model("demo-sd15", {"serving": False}, NOBODY)
    assert live.version == 0


async def test_the_file_s_aliases_stay(store: JobStore) -> None:
    live = LiveSettings(settings(aliases={"shapes": {"model": "demo-sdxl"}}), store.registry)
    with pytest.raises(UnknownEntry, match="in the configuration file alone"):
        await live.remove_alias("shapes", NOBODY)
    await live.set_alias("shapes", {"model": "demo-sd15"}, NOBODY)
    assert live.settings.aliases["shapes"].model == "demo-sd15"
    await live.remove_alias("shapes", NOBODY)
    assert live.settings.aliases["shapes"].model == "demo-sdxl"


async def test_another_file_may_leave_entries_without_effect(live: LiveSettings, other_store: JobStore) -> None:
    await live.change_model("demo-sdxl", {"defaults": {"steps": 12}}, NOBODY)
    smaller = catalogue()
    del smaller["models"]["demo-sdxl"]
    after = LiveSettings(Settings.model_validate(smaller), other_store.registry)
    await after.look()
    assert after.problems.keys() == {(EntryKind.MODEL, "demo-sdxl")}
    await after.change_model("demo-sdxl", {"defaults": None}, NOBODY)
    assert (after.problems, after.entries) == ({}, Entries())


async def test_while_the_database_is_away_the_settings_stay(tmp_path: Path) -> None:
    store = JobStore(f"sqlite+aiosqlite:///{tmp_path}/jobs.db")
    await store.open()
    live = LiveSettings(settings(), store.registry)
    await live.change_model("demo-sdxl", {"serving": False}, NOBODY)
    await live.start()
    (tmp_path / "jobs.db").rename(tmp_path / "away.db")
    (tmp_path / "jobs.db").mkdir()
    store._database._server._engine.dispose()  # type: ignore[union-attr]
    with pytest.raises(StoreUnavailable):
        await live.look()
    assert not live.settings.models["demo-sdxl"].serving
    live.check()
    (tmp_path / "jobs.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "jobs.db")
    elsewhere = LiveSettings(settings(), store.registry)
    await elsewhere.look()
    await elsewhere.change_model("demo-sdxl", {"serving": None}, NOBODY)
    await until(lambda: live.settings.models["demo-sdxl"].serving)
    await live.stop()
    await store.close()
