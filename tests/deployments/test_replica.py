"""Imports without the garbage collector, and the settings that a claim leaves."""

import gc
import logging

import pytest

from deployments.engine.config import EngineSettings, VaeSettings
from deployments.replica import DeviceClaim, settings_for, without_garbage_collection


@pytest.fixture(autouse=True)
def _thawed() -> object:
    yield
    gc.unfreeze()


def test_nothing_is_collected_meanwhile_and_what_came_is_never_walked_through_again() -> None:
    with without_garbage_collection():
        assert not gc.isenabled()
        lasting = {"objects": []}
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert all(tracked is not lasting for tracked in gc.get_objects())


def test_collecting_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), without_garbage_collection():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize("claimed", [1.0, 0.25])
def test_a_claim_that_the_cpu_computes_drops_what_only_a_gpu_has(
    claimed: float, caplog: pytest.LogCaptureFixture
) -> None:
    claim = DeviceClaim(gpus=claimed, gpu_ids=("0",), visible_devices="0")
    vae = VaeSettings(dtype="float16", tile=256)
    shipped = EngineSettings(device="cpu", dtype="float16", attention="xformers", vae=vae, max_rows=8)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        used = settings_for(claim, shipped)
    assert used == EngineSettings(device="cpu", dtype="float32", vae=VaeSettings(tile=256), max_rows=8)
    assert [record.getMessage() for record in caplog.records][:2] == [
        f"{claimed:g} of a GPU is claimed, and the CPU computes (device: cpu-with-claims)",
        "dtype float16 is for a GPU: float32 is used",
    ]
    assert "attention xformers is for a GPU: auto is used" in caplog.text


def test_what_the_cpu_can_do_stays() -> None:
    claim = DeviceClaim(gpus=1.0, gpu_ids=("0",), visible_devices="0")
    settings = EngineSettings(device="cpu", dtype="float32", attention="sliced")
    assert settings_for(claim, settings) == settings
