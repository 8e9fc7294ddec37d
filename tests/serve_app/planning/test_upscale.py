"""What an upscale means, how it is stored, what it takes."""

from typing import Any

import pytest

from deployments.engine.config import UpscalerSettings
from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import Settings
from serve_app.estimation.cost_model import CostModel
from serve_app.planning.plan import read_plan
from serve_app.planning.sizes import Size
from serve_app.planning.upscale import plan_upscale, resolve_upscale, upscaled_size
from serve_app.schemas.resolved import ResolvedUpscale, read_operation
from serve_app.schemas.upscale_request import UpscaleRequest

FOLDER = UpscalerSettings(folder="models", tile=256, overlap=16)


def upscale(settings: Settings, source: Size, upscaler: str = "model", **fields: Any) -> ResolvedUpscale:
    asked = UpscaleRequest(image="", upscaler=upscaler, **fields)
    size = upscaled_size(asked, source, None if upscaler == "lanczos" else 4, settings)
    return resolve_upscale(asked, settings, source=source, size=size, sha256="0" * 64)


@pytest.mark.parametrize(
    ("source", "fields", "size"),
    [
        (Size(100, 60), {}, (400, 240)),
        (Size(100, 60), {"upscaler": "lanczos"}, (200, 120)),
        (Size(101, 67), {"scale": 1.5}, (152, 100)),
        (Size(1, 1), {"scale": 1.5}, (2, 2)),
        (Size(101, 67), {"scale": 8.0}, (808, 536)),
        (Size(100, 67), {"width": 150}, (150, 101)),
        (Size(3, 1000), {"height": 2000}, (6, 2000)),
    ],
)
def test_sizes(demo_settings: Settings, source: Size, fields: dict[str, Any], size: tuple[int, int]) -> None:
    found = upscale(demo_settings, source, **fields)
    assert (found.width, found.height) == size


@pytest.mark.parametrize("fields", [{"width": 801}, {"height": 481}, {"width": 1 << 62}])
def test_no_more_than_eight_times(demo_settings: Settings, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="at most 8 times"):
        upscale(demo_settings, Size(100, 60), **fields)


def test_what_is_stored_is_read_as_what_it_was(demo_settings: Settings) -> None:
    stored = upscale(demo_settings, Size(100, 60), "lanczos")
    assert read_operation(stored.model_dump(mode="json")) == stored
    assert read_plan(stored.model_dump(mode="json"), demo_settings).stages[0].stage == "lanczos"
    with pytest.raises(ValueError, match="extra"):
        read_operation(stored.model_dump(mode="json") | {"prompt": "x"})


def test_a_stage_takes_its_tiles(demo_settings: Settings) -> None:
    small, large = (plan_upscale(upscale(demo_settings, Size(side, 200)), FOLDER).stages[0] for side in (200, 1000))
    assert (small.steps, small.width, small.height) == (1, 200, 200)
    assert (large.steps, large.width, large.height) == (5, 256, 200)
    with pytest.raises(KeyError):
        plan_upscale(upscale(demo_settings, Size(8, 8)), UpscalerSettings())


def test_cost_goes_by_tiles(demo_settings: Settings) -> None:
    model = CostModel()
    known, other = (plan_upscale(upscale(demo_settings, Size(side, side)), FOLDER) for side in (600, 1000))
    for _ in range(4):
        model.stepped(known.stages[0], 0.25, device_s=0.1, step_s=0.1)
    assert (known.stages[0].steps, other.stages[0].steps) == (9, 25)
    for one, seconds in ((known, 0.4), (other, 0.4 * 25 / 9)):
        found = model.predict(one.stages)
        assert found is not None
        assert found[0].device_s == pytest.approx(seconds)
