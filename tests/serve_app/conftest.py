"""Settings of a small catalogue, and a front of them over stand-in stages, as a test of the front needs them."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest

from serve_app.config.settings import Settings
from serve_app.jobs.db.store import JobStore
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, stand_ins
from tests.serve_app.served import served
from tests.serve_app.store_fixtures import (  # noqa: F401  # fixtures of several rooms
    bucket_url,
    clock,
    database_url,
    lossy_url,
    network,
    object_server,
    other_store,
    postgres,
    postgres_url,
    sqlite_url,
    store,
)


def catalogue() -> dict[str, Any]:
    small = {"width": {"min": 128, "max": 512}, "height": {"min": 128, "max": 512}}
    sized = {"width": 256, "height": 256}
    return {
        "models": {
            "demo-sd15": {"family": "sd15", "source": "sd15", "defaults": sized, "limits": small},
            "demo-sdxl": {
                "family": "sdxl",
                "source": "sdxl",
                "defaults": {**sized, "sampler": "Euler a"},
                "limits": {**small, "max_pixels": 512 * 384},
                "refiner": "demo-sdxl-refiner",
                "licence": "Apache-2.0",
                "description": "Shapes.",
                "draws": "Circles alone.",
                "examples": ["a red circle", "a circle, <b>bold</b>"],
            },
            "demo-sdxl-refiner": {"family": "sdxl-refiner", "source": "refiner"},
        },
        "default_model": "demo-sd15",
    }


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job database with its tables: making them takes longer than most tests of a front."""
    file = tmp_path_factory.mktemp("database") / "jobs.db"

    async def make() -> None:
        jobs = JobStore(f"sqlite+aiosqlite:///{file}")
        await jobs.open()
        await jobs.close()

    asyncio.run(make())
    return file


@pytest.fixture
def raw_settings(tmp_path: Path, empty_database: Path) -> dict[str, Any]:
    shutil.copy(empty_database, tmp_path / "jobs.db")
    return {
        **catalogue(),
        "jobs": {"database_url": f"sqlite+aiosqlite:///{tmp_path}/jobs.db"},
        "images": {"url": str(tmp_path / "images")},
    }


@pytest.fixture
def settings(raw_settings: dict[str, Any]) -> Settings:
    return Settings.model_validate(raw_settings)


@pytest.fixture(scope="session")
def demo_settings() -> Settings:
    """For tests that open no store."""
    return Settings.model_validate(catalogue())


@pytest.fixture
def online_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """huggingface_hub's clients may open connections, which the tests forbid elsewhere; they are closed afterwards."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def stages() -> Stages:
    return stand_ins()


@pytest.fixture
async def running(settings: Settings, stages: Stages) -> AsyncIterator[Front]:
    async with front(settings, stages) as one:
        yield one


@pytest.fixture
async def url(running: Front) -> AsyncIterator[str]:
    async with served(running) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """As clients call it that bring no library."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client
