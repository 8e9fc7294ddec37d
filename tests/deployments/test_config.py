"""Impossible combinations are refused when the settings are read."""

import pytest
from pydantic import ValidationError

from deployments.config import (
    AutoscalingSettings,
    ReplicaSettings,
    StageSettings,
    StagesSettings,
    TextEncoderSettings,
    stage_of,
)
from deployments.engine.config import EngineSettings
from deployments.engine.families.registry import FAMILIES


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (AutoscalingSettings, {"min_replicas": 3, "max_replicas": 2}, "min_replicas .3. is above"),
        (AutoscalingSettings, {"initial_replicas": 5, "max_replicas": 2}, "initial_replicas .5. is outside"),
        (ReplicaSettings, {"num_gpus": 2}, "less than or equal to 1"),
        (ReplicaSettings, {"accelerator_type": "L4"}, "accelerator_type needs num_gpus"),
        (StageSettings, {"preload": ["a", "b"]}, "preload names 2 checkpoints"),
        (StageSettings, {"num_gpu": 0.5}, "Extra inputs"),
        (StagesSettings, {"sd16": {}}, "Extra inputs"),
        (TextEncoderSettings, {"max_batch": 0}, "greater than or equal to 1"),
    ],
)
def test_refuses(model: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**values)


def test_preload_may_fill_the_memory() -> None:
    stage = StageSettings(engine=EngineSettings(resident_checkpoints=2), preload=("a", "b"))
    assert stage.preload == ("a", "b")


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        StagesSettings().sd15.num_gpus = 1.0


def test_what_refines_and_what_is_refined_have_stages_of_their_own() -> None:
    stages = {name: stage_of(name) for name in FAMILIES}
    assert stages == {"sd15": "sd15", "sd2": "sd15", "sdxl": "sdxl_base", "sdxl-refiner": "sdxl_refiner"}
