"""The bare pipeline in its own process answers call by call, and says so when it is gone."""

from itertools import repeat
from pathlib import Path

import pytest

from benchmarks.bare_calls import bare_calls
from benchmarks.service_requests import ImageRequest

REQUEST = ImageRequest(
    prompt="a red circle", seed=7, steps=2, guidance_scale=5.0, width=64, height=64, sampler="dpmpp_2m"
)


async def test_each_call_has_its_seconds(tiny_sd15: Path) -> None:
    async with bare_calls(str(tiny_sd15), repeat(REQUEST)) as call:
        few = await call(REQUEST)
        many = await call(REQUEST.model_copy(update={"steps": 40}))
    assert 0 < few < many


async def test_a_process_that_ends_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has ended"):
        async with bare_calls(str(tmp_path / "nothing"), repeat(REQUEST)):
            pass
