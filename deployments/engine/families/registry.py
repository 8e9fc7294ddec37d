"""The families by name."""

from collections.abc import Mapping

from deployments.engine.families.family import Family, FamilyName
from deployments.engine.families.sd2 import SD2
from deployments.engine.families.sd15 import SD15
from deployments.engine.families.sdxl import SDXL
from deployments.engine.families.sdxl_refiner import SDXL_REFINER

FAMILIES: Mapping[FamilyName, Family] = {family.name: family for family in (SD15, SD2, SDXL, SDXL_REFINER)}
