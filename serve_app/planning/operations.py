"""What a job may be: images that are drawn, or a picture that is enlarged. As it is stored, and as it is done.

Pure. What an operation is in itself stands in generation.py and upscaling.py.
"""

from collections.abc import Mapping
from typing import Any

from serve_app.config.settings import Settings
from serve_app.planning.plan import Plan, plan
from serve_app.planning.upscale import ResolvedUpscale, UpscalePlan, plan_upscale
from serve_app.schemas.resolved_generation import ResolvedGeneration

Operation = ResolvedGeneration | ResolvedUpscale
OperationPlan = Plan | UpscalePlan


def read_operation(stored: Mapping[str, Any]) -> Operation:
    """What a job's stored request says. Raises ValueError (pydantic's)."""
    if stored.get("operation") == "upscale":
        return ResolvedUpscale.model_validate(stored)
    return ResolvedGeneration.model_validate(stored)


def planned(operation: Operation, settings: Settings) -> OperationPlan:
    """Its plan. Raises KeyError for what the settings no longer have."""
    if isinstance(operation, ResolvedUpscale):
        return plan_upscale(operation, settings.upscalers)
    return plan(operation, settings)
