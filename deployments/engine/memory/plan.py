"""What fits the memory: budget and architectures -> policy, rows, images and sizes.

Nothing is loaded for it: footprint_tracing.py traces what an architecture takes.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import torch

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, MemoryPolicy
from deployments.engine.errors import DoesNotFit
from deployments.engine.families.registry import FAMILIES
from deployments.engine.memory.budget import MemoryBudget
from deployments.engine.memory.footprint import Describe, Footprint, StepTrace, compiling_bytes
from deployments.engine.memory.footprint_tracing import footprint_of
from deployments.engine.memory.limits import CELL, AllowedSizes, LargestSizes, RequestSize
from deployments.engine.memory.table import MemoryRow, MemoryTable, mib
from deployments.engine.types import DenoiseRequest

logger = logging.getLogger(__name__)

POLICIES: tuple[MemoryPolicy, ...] = get_args(MemoryPolicy)
"""The fastest first."""

_MOST_CELLS = (1 << 14) ** 2 // CELL  # an image of 16384 x 16384: none is larger


class MemoryPlan:
    """What fits, for each checkpoint of a catalogue, and the policy that makes it fit.

    The weights of `resident_checkpoints` leave the room for activations: the checkpoint's own and the largest others.
    So the room doesn't depend on what happens to be loaded.
    """

    def __init__(
        self,
        settings: EngineSettings,
        dtype: torch.dtype,
        budget: MemoryBudget,
        catalogue: Mapping[str, CheckpointSpec],
        describe: Describe,
        *,
        allowed: Mapping[str, AllowedSizes] | None = None,
        reserved: int = 0,
        traces: Sequence[StepTrace] = (),
        other_vaes: bool = False,
    ) -> None:
        """Read the configurations of the whole catalogue, and choose the policy, which doesn't change later.

        A configuration that can't be read now is tried again when its checkpoint is loaded.

        Args:
            settings: of the engine.
            dtype: of weights and activations.
            budget: the memory of the engine.
            catalogue: checkpoints by name.
            describe: returns a checkpoint's configurations.
            allowed: the sizes of images that the checkpoints may draw.
            reserved: bytes for the weights of LoRAs, conditionings and VAEs.
            traces: of the conditionings that may be in a step.
            other_vaes: whether requests may name VAEs in place of the checkpoints' own.
        """
        self._settings = settings
        self._dtype = dtype
        self._budget = replace(budget, bytes=max(0, budget.bytes - reserved))
        self._catalogue = catalogue
        self._describe = describe
        self._allowed = dict(allowed or {})
        self._added: set[str] = set()
        self._traces = traces
        self._other_vaes = other_vaes
        self._footprints: dict[str, Footprint] = {}
        self._changing = threading.RLock()  # checkpoints come and go in the engine's thread, and others ask
        self._sizes: Mapping[str, LargestSizes] = {}
        self._rows: dict[tuple[str, int], int] = {}
        self._policy: MemoryPolicy = "resident"
        self._learn(catalogue)
        self._policy, self._why = self._choice()
        self._measure()

    @property
    def policy(self) -> MemoryPolicy:
        """Where weights are while they aren't needed."""
        return self._policy

    @property
    def largest_sizes(self) -> Mapping[str, LargestSizes]:
        """The largest images by checkpoint, as far as its configuration could be read."""
        return self._sizes

    @property
    def table(self) -> MemoryTable:
        """The plan as a table, for people."""
        with self._changing:
            rows = [row for name in self._footprints for row in self._table_rows(name)]
            unknown = tuple(name for name in list(self._catalogue) if name not in self._footprints)
            return MemoryTable(self._policy, self._why, self._limit, self._origin, tuple(rows), unknown)

    def add(self, checkpoint: str, allowed: AllowedSizes) -> None:
        """A checkpoint came into the catalogue; what it takes is learnt when it is loaded."""
        self._allowed[checkpoint] = allowed
        self._added.add(checkpoint)

    def remove(self, checkpoint: str) -> None:
        """A checkpoint that was added leaves the catalogue."""
        self._added.discard(checkpoint)
        self._allowed.pop(checkpoint, None)
        with self._changing:
            if self._footprints.pop(checkpoint, None) is not None:
                self._measure()

    def rows(self, checkpoint: str, cells: int) -> int:
        """The most UNet rows of a step, a power of two; 1 if not even that fits."""
        known = self._rows.get((checkpoint, cells))  # asked several times a step
        if known is not None:
            return known
        with self._changing:
            footprint = self._footprints.get(checkpoint)
            most = self._settings.max_rows
            if footprint is not None:
                left = self._left_in_step(checkpoint, cells)
                most = _halved(most, lambda rows: footprint.step(rows, cells) <= left)
            self._rows[checkpoint, cells] = most
            return most

    def images(self, checkpoint: str, cells: int) -> int:
        """The most images of a decode batch; 1 if not even that fits."""
        footprint = self._footprints.get(checkpoint)
        if footprint is None:
            return self._settings.decode_batch
        left = self._left_in_decode(checkpoint, cells)
        return _halved(self._settings.decode_batch, lambda images: footprint.decode(images, cells) <= left)

    def tiled(self, checkpoint: str, cells: int) -> bool:
        """Whether the VAE takes images of so many latent cells in tiles."""
        footprint, tiling = self._footprints.get(checkpoint), self._settings.vae.tiling
        if tiling == "never" or footprint is None:
            return False
        return tiling == "always" or footprint.decode(1, cells) > self._left_in_decode(checkpoint, cells)

    def check_loading(self, checkpoint: str) -> None:
        """Raise DoesNotFit if the checkpoint's weights, or its smallest allowed image beside them, don't fit.

        Also for one that was added, if beside it the largest images of another checkpoint would fit no longer.
        """
        if checkpoint not in self._footprints:
            self._learn_late(checkpoint)
        footprint = self._footprints.get(checkpoint)
        if footprint is None:
            return
        least = self._allowed.get(checkpoint, AllowedSizes()).smallest
        weights = f"the UNet ({mib(footprint.unet)}) and the VAE ({mib(footprint.vae)}) of {checkpoint!r}"
        if others := self._others(checkpoint):
            weights += f" and {mib(others)} of other resident checkpoints"
        missing = max(-self._room_in_step(checkpoint), -self._room_in_decode(checkpoint))
        if missing >= 0:
            raise self._refusal(f"the weights don't fit: {weights}", self._limit + missing)
        cells, rows = -(-least.pixels // CELL), 2 if least.guided else 1
        lanes = footprint.lanes(self._settings, cells)
        step = footprint.step(rows, cells) + lanes - self._room_in_step(checkpoint)
        decode = self._decode(footprint, cells) + lanes - self._room_in_decode(checkpoint)
        if max(step, decode) > 0:
            part = f"a UNet step of {rows} row(s)" if step >= decode else "the VAE's decode"
            what = f"{part} at {least.pixels} pixels, the least that may be asked, doesn't fit beside {weights}"
            raise self._refusal(what, self._limit + max(step, decode))

    def check(self, request: DenoiseRequest) -> None:
        """Raise DoesNotFit for a request that doesn't fit even alone in its batch."""
        sizes = self._sizes.get(request.checkpoint)
        if sizes is not None:
            sizes.check(request)

    @property
    def _compiler(self) -> int:
        """Bytes of the device for the compiling process; 0 on the CPU, or if weights don't stay on the device."""
        if self._settings.compile is None or not self._budget.offloads or self._policy != "resident":
            return 0
        return max((compiling_bytes(of.unet) for of in self._footprints.values()), default=0)

    @property
    def _limit(self) -> int:
        """Bytes for weights and activations."""
        return max(0, self._budget.bytes - self._compiler)

    @property
    def _origin(self) -> str:
        less = f", less {mib(self._compiler)} for the process that compiles" if self._compiler else ""
        return self._budget.origin + less

    def _choice(self) -> tuple[MemoryPolicy, str]:
        """The policy, and why."""
        setting = self._settings.memory
        if setting != "auto":
            return setting, "as the settings say"
        if not self._budget.offloads:
            return "resident", "on the CPU nothing is gained by another"
        largest = {name: size for name in self._footprints if (size := self._largest(name)) is not None}
        if not largest:
            return "resident", "no size is known that has to fit"
        refused = ""
        for policy in POLICIES:
            self._policy = policy
            missing = max(self._missing(name, size) for name, size in largest.items())
            if missing <= 0:
                return policy, f"the largest image fits{refused}"
            refused += f"; {policy} would need {mib(self._budget.bytes + missing)}"
        return POLICIES[-1], f"even so the largest image doesn't fit{refused}"

    def _largest(self, name: str) -> RequestSize | None:
        return self._allowed.get(name, AllowedSizes()).largest

    def _missing(self, name: str, size: RequestSize) -> int:
        """Bytes that are missing for one image of that size; at most 0 if it fits."""
        of, cells = self._footprints[name], -(-size.pixels // CELL)
        step = of.step(2 if size.guided else 1, cells) - self._left_in_step(name, cells)
        return max(step, self._decode(of, cells) - self._left_in_decode(name, cells))

    def _table_rows(self, name: str) -> list[MemoryRow]:
        of, sizes = self._footprints[name], self._sizes[name]
        largest = self._largest(name)
        most = min(sizes.unguided, sizes.decoded if largest is None else largest.pixels)
        cells = max(1, most // CELL)
        rows, images, tiled = self.rows(name, cells), self.images(name, cells), self.tiled(name, cells)
        lanes = of.lanes(self._settings, cells)
        step = lanes + of.step(rows, cells)
        decode = lanes + (of.tiled_decode(cells) if tiled else of.decode(images, cells))
        side = f"{round((cells * CELL) ** 0.5)} x {round((cells * CELL) ** 0.5)} pixels"
        in_step, in_decode = (there(self._policy) + self._others(name) for there in (of.unet_there, of.vae_there))
        limit = self._limit
        pieces = "tiles" if tiled and cells > of.tile else f"{images} image(s)"
        return [
            MemoryRow(name, "UNet", of.unet, in_step, step, f"{rows} rows of {side}", in_step + step <= limit),
            MemoryRow(name, "VAE", of.vae, in_decode, decode, f"{pieces} of {side}", in_decode + decode <= limit),
        ]

    def _learn_late(self, checkpoint: str) -> None:
        """Learn a footprint after the start. Raises DoesNotFit if an added checkpoint would crowd out another."""
        fitted = [name for name in self._footprints if self._fits(name)]
        self._learn([checkpoint])
        crowded = next((name for name in fitted if not self._fits(name)), None)
        if crowded is not None and checkpoint in self._added:
            size = self._allowed[crowded].largest
            needed = self._limit + (0 if size is None else self._missing(crowded, size))
            with self._changing:
                del self._footprints[checkpoint]
            raise self._refusal(f"the largest images of {crowded!r} would fit no longer beside {checkpoint!r}", needed)
        with self._changing:
            self._measure()

    def _fits(self, name: str) -> bool:
        """Whether the largest image that a checkpoint may draw fits."""
        largest = self._largest(name)
        return largest is None or self._missing(name, largest) <= 0

    def _learn(self, checkpoints: Iterable[str]) -> None:
        """Read the checkpoints' footprints."""
        for name in checkpoints:
            try:
                spec = self._catalogue[name]
                architecture = self._describe(spec)
                if self._other_vaes and FAMILIES[spec.family].upcasts_vae:  # where the own one doesn't, another may
                    architecture = replace(architecture, vae={**architecture.vae, "force_upcast": True})
                footprint = footprint_of(architecture, self._settings, self._dtype, self._traces)
                with self._changing:
                    self._footprints[name] = footprint
            except Exception as error:  # a stranger's file may hold anything; loading it says what is wrong
                logger.warning("checkpoint %s: what it needs isn't known (%s)", name, error)

    def _measure(self) -> None:
        """Compute all sizes anew: a checkpoint that becomes known leaves the others less room."""
        self._sizes = {name: self._largest_sizes(name) for name in self._footprints}
        self._rows.clear()

    def _largest_sizes(self, checkpoint: str) -> LargestSizes:
        of, bucket = self._footprints[checkpoint], self._settings.reproducible_rows

        def largest(fits: Callable[[int], bool]) -> int:
            most, above = 0, _MOST_CELLS + 1
            while above - most > 1:
                cells = (most + above) // 2
                if fits(cells):
                    most = cells
                else:
                    above = cells
            return most * CELL

        def step_fits(rows: int) -> Callable[[int], bool]:
            return lambda cells: of.step(rows, cells) <= self._left_in_step(checkpoint, cells)

        return LargestSizes(
            unguided=largest(step_fits(1)),
            guided=largest(step_fits(2)),
            reproducible=largest(step_fits(bucket)),
            decoded=largest(lambda cells: self._decode(of, cells) <= self._left_in_decode(checkpoint, cells)),
            several={rows: largest(step_fits(rows)) for rows in (4, 8)},
        )

    def _decode(self, of: Footprint, cells: int) -> int:
        """The least that decoding one image takes."""
        whole = of.decode(1, cells)
        return whole if self._settings.vae.tiling == "never" else min(whole, of.tiled_decode(cells))

    def _left_in_step(self, checkpoint: str, cells: int) -> int:
        """Bytes for the activations of a step if every lane has so many cells."""
        return self._room_in_step(checkpoint) - self._footprints[checkpoint].lanes(self._settings, cells)

    def _left_in_decode(self, checkpoint: str, cells: int) -> int:
        return self._room_in_decode(checkpoint) - self._footprints[checkpoint].lanes(self._settings, cells)

    def _room_in_step(self, checkpoint: str) -> int:
        """Bytes beside the weights, during a step."""
        there = self._footprints[checkpoint].unet_there(self._policy)
        return self._limit - there - self._others(checkpoint)

    def _room_in_decode(self, checkpoint: str) -> int:
        there = self._footprints[checkpoint].vae_there(self._policy)
        return self._limit - there - self._others(checkpoint)

    def _others(self, checkpoint: str) -> int:
        """The most bytes of other checkpoints that may be on the device."""
        if self._policy != "resident":
            return 0
        others = sorted(of.weights for name, of in self._footprints.items() if name != checkpoint)
        return sum(others[len(others) - min(len(others), self._settings.resident_checkpoints - 1) :])

    def _refusal(self, what: str, needed: int) -> DoesNotFit:
        settings = self._settings
        remedies = [f"more {self._budget.setting}"]
        if settings.resident_checkpoints > 1:
            remedies.append("fewer resident_checkpoints")
        if self._dtype == torch.float32:
            remedies.append("a dtype of 16 bits")
        elif settings.quantize == "none":
            remedies.append("quantize: int8")
        if self._compiler:
            remedies.append("no compile")
        if settings.max_lanes > 1:
            remedies.append("fewer max_lanes")
        if self._budget.offloads and settings.memory != "auto" and self._policy != POLICIES[-1]:
            remedies.append(f"memory: {POLICIES[POLICIES.index(self._policy) + 1]}")
        if settings.vae.tiling == "never":
            remedies.append("vae.tiling: auto")
        return DoesNotFit(
            f"{what}: {mib(needed)} in all, the limit is {mib(self._limit)} ({self._origin}). "
            f"What would help: {', '.join(remedies)}"
        )


def _halved(limit: int, fits: Callable[[int], bool]) -> int:
    """`limit`, or half of it, or half of that, so that it fits; at least 1."""
    while limit > 1 and not fits(limit):
        limit //= 2
    return limit
