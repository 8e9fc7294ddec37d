"""Pages need a service that answers while a test waits for the browser: a front on a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser
from safetensors.numpy import save_file

from serve_app.config.settings import Settings
from serve_app.stages.readiness import StageState
from tests.chromium import Watched, watched
from tests.detectors import tiny_network, write_detector
from tests.serve_app.api.openai.batch_client import driving
from tests.serve_app.api.test_controlnets import write as write_controlnet
from tests.serve_app.api.test_references import write as write_ip_adapter
from tests.serve_app.api.test_vaes import tensors as ends_of_a_vae
from tests.serve_app.conftest import catalogue
from tests.serve_app.front import front, stand_ins
from tests.serve_app.keyed import GENERATE_READ, with_keys
from tests.serve_app.served import served


@contextmanager
def front_beside(settings: Settings, states: Mapping[str, StageState] = MappingProxyType({})) -> Iterator[str]:
    """The URL of a front over stand-in stages; `states` are what it knows of them."""
    stages = stand_ins()
    address: list[str] = []
    listening = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serving() -> None:
        try:
            async with front(settings, stages, dict(states)) as one, driving(one), served(one) as url:
                address.append(url)
                listening.set()
                await over.wait()
        finally:
            listening.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serving()))
    thread.start()
    listening.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def settings_in(folder: Path) -> dict[str, Any]:
    for name in ("loras", "controlnets", "ip-adapters", "vaes", "detectors"):
        (folder / name).mkdir()
    matrices = {f"lora_unet_a.lora_{way}.weight": np.ones((2, 2), np.float32) for way in ("down", "up")}
    save_file(matrices, folder / "loras" / "ink.safetensors")
    write_controlnet(folder / "controlnets" / "edges")
    write_ip_adapter(folder / "ip-adapters" / "base.safetensors", proj__weight=(3072, 1024))
    save_file(ends_of_a_vae(), folder / "vaes" / "soft.safetensors")
    write_detector(folder / "detectors" / "shapes.safetensors", tiny_network())
    return {
        **catalogue(),
        "loras": {"folder": str(folder / "loras")},
        "controlnets": {"folder": str(folder / "controlnets")},
        "ip_adapters": {"folder": str(folder / "ip-adapters")},
        "vaes": {"folder": str(folder / "vaes")},
        "detectors": {"folder": str(folder / "detectors")},
        "limits": {"max_image_pixels": 1 << 18},
        "jobs": {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.db"},
        "images": {"url": str(folder / "images")},
    }


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with front_beside(Settings.model_validate(settings_in(tmp_path_factory.mktemp("front")))) as address:
        yield address


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a front that asks for keys, and a key."""
    folder = tmp_path_factory.mktemp("keyed")
    raw = settings_in(folder)
    keys = with_keys(raw, folder / "keys", alice=GENERATE_READ)
    with front_beside(Settings.model_validate(raw)) as address:
        yield address, keys["alice"]


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Watched]:
    with watched(browser, url) as one:
        yield one
