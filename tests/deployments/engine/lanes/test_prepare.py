"""A lane is made of the weights that its request is for, and of no others."""

from collections.abc import Callable

import pytest

from deployments.engine.engine import Engine
from deployments.engine.errors import CheckpointChanged
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from tests.deployments.engine.listening import ask


def test_a_request_for_one_hash_is_drawn_by_these_weights_alone(
    make_engine: Callable[..., Engine],
    run_together: Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]],
    encode_sd15: Callable[..., Conditioning],
) -> None:
    engine, text = make_engine(), encode_sd15("a red circle")
    [any_weights] = run_together(engine, [(ask(steps=1), text)])
    pinned = ask(steps=1, checkpoint_hash=any_weights.checkpoint_hash)
    [same] = run_together(engine, [(pinned, text)])
    assert same.image is not None
    assert any_weights.image is not None
    assert same.image.tobytes() == any_weights.image.tobytes()
    with pytest.raises(CheckpointChanged, match=f"have the hash {any_weights.checkpoint_hash}, the request is for 000"):
        run_together(engine, [(ask(steps=1, checkpoint_hash="0" * 64), text)])
