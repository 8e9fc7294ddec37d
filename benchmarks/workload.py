"""What is measured: a checkpoint, a size, a number of steps, a device; the same for every contender of a run.

Plain settings and numpy; no torch here, so that the process that starts the contenders needs none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.machine import processors
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import DeviceName, DtypeName, EngineSettings, MemoryPolicy
from deployments.engine.families.family import FamilyName
from deployments.engine.types import Conditioning, PromptEmbedding

Array = npt.NDArray[np.float32]

TOKENS = 77

_FAMILIES: Mapping[str, FamilyName] = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl-refiner",
}


class Workload(BaseModel):
    """One kind of request, on one device.

    random_weights: the family's real architecture, filled at random, in place of the spec's source.
    guidance_scale: above 1, two UNet rows an image.
    cpu_threads: torch threads of every contender; 0 is one a processor.
    seconds: how long each figure is measured for, at least one round of images whatever it takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: CheckpointSpec
    random_weights: bool
    width: int = Field(multiple_of=8, ge=64, le=4096)
    height: int = Field(multiple_of=8, ge=64, le=4096)
    steps: int = Field(ge=1, le=1000)
    sampler: str
    guidance_scale: float = Field(ge=0.0)
    device: DeviceName
    dtype: DtypeName
    cpu_threads: int = Field(default=0, ge=0)
    seconds: float = Field(gt=0.0)

    @property
    def rows(self) -> int:
        """UNet rows an image takes in a step."""
        return 2 if self.guidance_scale > 1 else 1


class EngineContender(BaseModel):
    """Darkroom's engine; `settings` changes its defaults.

    compiling_s: how long each figure waits at most for the forwards that it needs, where some are to be compiled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["engine"] = "engine"
    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    compiling_s: float = 900.0


class DiffusersContender(BaseModel):
    """A diffusers pipeline: one call at a time, then one call for n images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["diffusers"] = "diffusers"
    name: str
    channels_last: bool = False
    compiled: bool = False


PLAIN = DiffusersContender(name="diffusers")
CHANNELS_LAST = DiffusersContender(name="diffusers channels_last", channels_last=True)
COMPILED = DiffusersContender(name="diffusers compiled", channels_last=True, compiled=True)


class ModuleTimes(BaseModel):
    """No server at all: the device's matrix rate, the UNet by rows, the VAE by images.

    largest: most rows; they are timed in powers of two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["modules"] = "modules"
    name: str = "modules"
    channels_last: bool = True
    largest: int = Field(default=16, ge=1)


class TextEncoding(BaseModel):
    """Not a measurement: encodes the prompts once, for all contenders, into the embeddings file at `path`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["encode"] = "encode"
    name: str = "text encoding"
    path: str


class ParityCheck(BaseModel):
    """Likeness to diffusers, and bit by bit within a bucket (parity.py), at the workload's size, in each type.

    lanes: how many of the unlike ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["parity"] = "parity"
    name: str = "parity"
    dtypes: tuple[DtypeName, ...]
    lanes: int = Field(default=8, ge=1)


class MemoryPeaks(BaseModel):
    """Measured peaks beside those that the memory plan predicts, for steps of so many rows and for one image.

    policy: where the engine's weights are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["peaks"] = "peaks"
    name: str = "memory"
    policy: MemoryPolicy = "resident"
    rows: tuple[int, ...] = (1, 4, 8)


class SwapTimes(BaseModel):
    """Changes of checkpoints (swap.py); alone: with nothing else to do, swaps: under load."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["swap"] = "swap"
    name: str = "swap"
    alone: int = Field(ge=2)
    swaps: int = Field(ge=1)
    host_memory_gib: float = Field(ge=0.0)


Contender = EngineContender | DiffusersContender | ModuleTimes | TextEncoding | ParityCheck | MemoryPeaks | SwapTimes


class Job(BaseModel):
    """What a contender's own process is told.

    embeddings: file of the prompts' embeddings; None: random ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: Workload
    contender: Contender = Field(discriminator="kind")
    concurrency: tuple[int, ...] = ()
    embeddings: str | None = None


def settings_of(changes: str) -> dict[str, Any]:
    """Engine settings of KEY=VALUE,...: keys may be dotted (vae.dtype=bfloat16), a value be {} or null.

    Raises ValueError.
    """
    settings: dict[str, Any] = {}
    for change in filter(None, changes.split(",")):
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"engine settings are KEY=VALUE,..., not {change!r}")
        *sections, last = key.split(".")
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = {"{}": {}, "null": None}.get(value, value)
    return settings


def engine_settings(workload: Workload, changes: Mapping[str, Any]) -> EngineSettings:
    """The shipped defaults on the workload's device, with changes; where something is compiled, at once and in a hurry.

    Raises pydantic's ValidationError.
    """
    device = {"device": workload.device, "dtype": workload.dtype, "cpu_threads": workload.cpu_threads}
    settings = {**device, **changes}
    if isinstance(settings.get("compile"), dict):
        settings["compile"] = {"after_steps": 1, "niceness": 0, "threads": processors()} | settings["compile"]
    return EngineSettings.model_validate(settings)


def settings_fault(error: ValidationError) -> str:
    """On one line: which settings an engine of this version doesn't take, and why."""
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))


def spec_of(checkpoint: str, family: FamilyName | None, variant: str | None) -> CheckpointSpec:
    """The spec of what `--checkpoint` names: a demo model, a folder, a hub id, a single file.

    Raises ValueError where the family isn't said and can't be read from a folder's model_index.json.
    """
    source = checkpoint
    if checkpoint.startswith("demo-") and not Path(checkpoint).exists():
        source = f"package:demo_models/{checkpoint}"
        family = family or ("sdxl" if checkpoint == "demo-sdxl" else "sd15")
    index = Path(checkpoint) / "model_index.json"
    if family is None and index.is_file():
        family = _FAMILIES.get(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    if family is None:
        raise ValueError(f"{checkpoint}: say its --family; only a diffusers folder's can be read off")
    return CheckpointSpec(family=family, source=source, variant=variant)


def random_conditioning(hidden: int, pooled: int | None, guided: bool, seed: int = 0) -> Conditioning:
    """Standard normal embeddings of so many channels; their values fit into 16 bits exactly."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        values = random.standard_normal(shape, dtype=np.float32)
        values.view(np.uint32)[...] &= 0xFFFF0000  # bfloat16's mantissa, which float16 holds too
        return values

    def one() -> PromptEmbedding:
        return PromptEmbedding(draw(TOKENS, hidden), None if pooled is None else draw(pooled))

    positive, negative = one(), one()
    return Conditioning(positive, negative if guided else None)


def save_conditioning(path: Path, conditioning: Conditioning) -> None:
    """Write what `read_conditioning` reads (npz)."""
    arrays: dict[str, Array] = {}
    for name, embedding in (("positive", conditioning.positive), ("negative", conditioning.negative)):
        if embedding is not None:
            arrays[name] = embedding.hidden_states
            if embedding.pooled is not None:
                arrays[f"{name}_pooled"] = embedding.pooled
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_conditioning(path: Path, guided: bool) -> Conditioning:
    """Embeddings that `save_conditioning` wrote."""
    with np.load(path, allow_pickle=False) as arrays:

        def one(name: str) -> PromptEmbedding:
            pooled = arrays.get(f"{name}_pooled")
            return PromptEmbedding(arrays[name], pooled)

        return Conditioning(one("positive"), one("negative") if guided else None)
