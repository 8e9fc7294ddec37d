"""Alive is not ready."""

from pathlib import Path

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from serve_app.stages.readiness import StageState
from tests.serve_app.front import front, stand_ins
from tests.serve_app.stand_in_stages import describe


async def test_ready_says_which_stage_is_missing_and_why(settings: Settings) -> None:
    stages: Stages = stand_ins()
    states = {
        "TextEncoder": StageState("ready", None, 1, describe("TextEncoder")),
        "SD15": StageState("starting", "loading its checkpoints", 0, None),
    }
    async with front(settings, stages, states) as one:
        assert (await one.http.get("/health")).json() == {"status": "ok"}
        response = await one.http.get("/ready")
        assert response.status_code == 503
        body = response.json()
        assert body["ready"] is False
        assert body["stages"]["TextEncoder"]["replica"]["device"] == "cpu"
        assert body["stages"]["SD15"]["reason"] == "loading its checkpoints"


async def test_ready_when_every_stage_is_or_sleeps(settings: Settings) -> None:
    states = {"SD15": StageState("asleep", None, 0, None)}
    async with front(settings, stand_ins(), states) as one:
        response = await one.http.get("/ready")
        assert (response.status_code, response.json()["ready"]) == (200, True)
        assert response.json()["jobs"] == {"state": "ready", "queued": 0, "running": 0}
        assert response.json()["images"] == {"state": "ready"}


async def test_not_ready_without_a_place_for_images(settings: Settings, tmp_path: Path) -> None:
    states = {"SD15": StageState("ready", None, 1, None)}
    async with front(settings, stand_ins(), states) as one:
        (tmp_path / "images").rename(tmp_path / "away")
        response = await one.http.get("/ready")
        assert (response.status_code, response.json()["ready"]) == (503, False)
        assert response.json()["images"] == {"state": "failed", "reason": "the image store's folder or bucket is gone"}
        assert (await one.generate(seed=2)).status_code == 503
        (tmp_path / "away").rename(tmp_path / "images")
        assert (await one.http.get("/ready")).status_code == 200
