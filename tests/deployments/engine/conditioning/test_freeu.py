"""FreeU against diffusers' `enable_freeu`, alone and among lanes without it, whose bits stay as they are."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import fourier_filter

from deployments.engine.conditioning.freeu import _filtered
from deployments.engine.engine import Engine
from deployments.engine.errors import StateRefused
from deployments.engine.parameters import FreeU
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Progress
from tests.deployments.engine.conftest import Encode, MakeEngine
from tests.deployments.engine.denoising.parity import assert_close, encode, reference, seeded
from tests.deployments.engine.listening import Listener, ask

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

SIZE = 128  # with several cells at the levels that it changes
USUAL = FreeU(s1=0.9, s2=0.2, b1=1.3, b2=1.4)


def freed(freeu: FreeU | None, **changes: Any) -> DenoiseRequest:
    factors = {} if freeu is None else {f"freeu_{name}": value for name, value in dataclasses.asdict(freeu).items()}
    size = {"width": SIZE, "height": SIZE, "reproducible": True, "output": "latents"}
    return ask(**size | factors | changes)


def expected(pipeline: Any, request: DenoiseRequest) -> torch.Tensor:
    if request.freeu != FreeU():
        pipeline.enable_freeu(**dataclasses.asdict(request.freeu))
    try:
        return reference(pipeline, request, seeded(request), width=request.width, height=request.height)
    finally:
        pipeline.disable_freeu()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_as_diffusers_alone_and_among_lanes_without(
    make_engine: MakeEngine, run_together: RunTogether, family: str, request: pytest.FixtureRequest
) -> None:
    engine, pipeline = make_engine(reproducible_rows=16, cpu_threads=2), request.getfixturevalue(f"{family}_pipeline")
    kinds = [USUAL, None, FreeU(s1=2.0, s2=1.5, b1=0.5, b2=0.8), None, FreeU(s1=0.5), FreeU(b2=1.7)]
    requests = [
        freed(freeu, lane_id=f"{number}", seed=20 + number, checkpoint=family, guidance_scale=(5.0, 1.0)[number % 2])
        for number, freeu in enumerate(kinds)
    ]
    wanted = {one.lane_id: expected(pipeline, one) for one in requests}
    plain = expected(pipeline, dataclasses.replace(requests[0], freeu_s1=1, freeu_s2=1, freeu_b1=1, freeu_b2=1))
    assert (plain - wanted["0"]).abs().max() > 0.01  # it makes a difference
    work = [(one, encode(pipeline, one)) for one in requests]
    alone = [run_together(engine, [item])[0] for item in work]
    together = run_together(engine, work)
    assert_close(alone + together, wanted)
    for one, other in zip(alone, together, strict=True):
        assert one.latents is not None
        assert other.latents is not None
        assert one.latents.tobytes() == other.latents.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (3, 5), (8, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_filter_is_diffusers_and_leaves_other_rows_alone(size: tuple[int, int], dtype: torch.dtype) -> None:
    states = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
    found = _filtered(states, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float32).view(3, 1, 1, 1))
    assert found.dtype == dtype
    assert torch.equal(found[1], states[1])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    for row, scale in ((0, 0.2), (2, 3.0)):
        wanted = fourier_filter(states[row : row + 1], 1, scale)[0]
        assert torch.allclose(found[row], wanted, atol=tolerance, rtol=tolerance)


def test_a_lost_lane_goes_on_with_the_same_factors(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    engine, text, request = make_engine(), encode_sd15("a cat"), freed(USUAL, state_every=1)
    listener = Listener()
    engine.submit(request, text, listener)
    whole = listener.outcome()
    assert isinstance(whole, DenoiseResult)
    state = next(item.state for item in listener.items if isinstance(item, Progress) and item.state is not None)
    (resumed,) = run_together(make_engine(), [(dataclasses.replace(request, resume=state), text)])
    assert resumed.latents is not None
    assert whole.latents is not None
    assert np.array_equal(resumed.latents, whole.latents)
    with pytest.raises(StateRefused, match="another freeu_b1"):
        run_together(engine, [(dataclasses.replace(request, resume=state, freeu_b1=1.5), text)])
