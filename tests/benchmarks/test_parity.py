"""The parity check itself: that it passes a right engine, and fails a wrong one."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.parity import main
from benchmarks.results import LaneParity

PASSING = LaneParity(
    family="sd15",
    dtype="float32",
    sampler="euler",
    steps=8,
    guidance_scale=7.5,
    alone=1e-6,
    together=2e-6,
    plain=1e-6,
    bitwise=True,
)


@pytest.mark.parametrize(("checkpoint", "dtype"), [("tiny_sdxl", "float32"), ("shallow_sd15", "bfloat16")])
def test_every_lane_passes(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], checkpoint: str, dtype: str
) -> None:
    arguments = ["--checkpoint", str(request.getfixturevalue(checkpoint)), "--dtype", dtype]
    arguments += ["--size", "64", "--threads", "1", "--device", "cpu"]
    with ThreadPoolExecutor(1) as one:  # the thread that opens the device keeps its settings
        status = one.submit(main, arguments).result()
    printed = capsys.readouterr().out
    assert "PASS: 8 of 8 lanes" in printed
    assert status == 0, printed


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"alone": 2e-4}, False),
        ({"together": float("nan")}, False),
        ({"bitwise": False}, False),
        ({"alone": 2e-4, "plain": 1e-4}, True),
        ({"dtype": "float16", "alone": 1e-2, "together": 1e-2, "plain": 8e-3}, True),
        ({"dtype": "float16", "alone": 5e-2, "together": 1e-2, "plain": 8e-3}, False),
    ],
)
def test_what_passes(change: dict[str, object], passed: bool) -> None:
    assert PASSING.model_copy(update=change).passed is passed
