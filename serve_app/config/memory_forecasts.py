"""What the memory of each denoising stage would be planned to hold, as the settings are (`darkroom config check`).

Knows settings and claims; the plan is the engine's.
"""

from deployments.engine.config import NO_CONTROLNETS, NO_LORAS
from deployments.engine.memory.forecast import forecast
from deployments.engine.memory.table import MemoryTable
from serve_app.config.claims import Claims
from serve_app.config.settings import STAGE_OF_FAMILY, Settings


def memory_forecasts(settings: Settings, gpu_gib: float | None) -> dict[str, MemoryTable]:
    """By stage. gpu_gib: memory of a GPU that each of them claims its part of; None where there is none."""
    claims = Claims(settings, 0.0 if gpu_gib is None else 1.0)
    tables = {}
    for family, name in STAGE_OF_FAMILY.items():
        catalogue = settings.checkpoints(family)
        if not catalogue:
            continue
        stage = getattr(settings.stages, name)
        claim = claims.of(name, stage, stage.engine)
        fraction = min(stage.engine.memory_fraction, claim) if claim else stage.engine.memory_fraction
        refines = family == "sdxl-refiner"
        tables[name] = forecast(
            stage.engine.model_copy(update={"memory_fraction": fraction}),
            catalogue,
            settings.allowed_sizes(family),
            NO_LORAS if refines else settings.loras,
            NO_CONTROLNETS if refines else settings.controlnets,
            gpu_gib if claim else None,
        )
    return tables
