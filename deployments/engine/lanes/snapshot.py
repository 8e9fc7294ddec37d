"""A lane between two steps as plain data, from which another engine on another machine can go on.

With its request and its prompt that is all there is to a lane: a step's noise is drawn in that step, and none is left
over. No torch here, because the front stores snapshots.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from deployments.engine.errors import StateRefused
from deployments.engine.parameters import DenoisingParameters


@dataclass(frozen=True, slots=True)
class SnapshotFingerprint(DenoisingParameters):
    """What a lane's numbers depend on besides its prompt and first latents; the fields not listed as in DenoiseResult.

    The store of snapshots knows whose prompt and latents they are. Another bucket or device rounds differently.

    Attributes:
        table: SHA-256 (hex) over the sampler table's numbers, and so over the part of the schedule.
        shape: of the latents.
        loras: SHA-256 (hex) over the UNet's LoRAs and their weights; "" for none.
        conditions: likewise over the lane's conditionings and regions.
        vae: likewise over the files of the VAE that the request names; "" for none.
    """

    checkpoint_hash: str
    table: str
    shape: tuple[int, int, int]
    reproducibility: str
    device: str
    dtype: str
    loras: str = ""
    conditions: str = ""
    vae: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LaneSnapshot:
    """A lane after `step` UNet evaluations.

    Attributes:
        latents: (channels, height / 8, width / 8), float32, as the scheduler has them.
        past_samples, past_outputs: (n, channels, height / 8, width / 8), float32, newest first, n >= 0: what the
            sampler reads of earlier steps.
        generator_state: 1-D, uint8, the lane's CPU generator after its last draw.
        device_s, step_s: what the lane has cost so far, as in Progress.
        returned: as latents: the last step's result before what is kept of an image was put back; None if the sampler
            doesn't read it.
    """

    fingerprint: SnapshotFingerprint
    step: int
    latents: npt.NDArray[np.float32]
    past_samples: npt.NDArray[np.float32]
    past_outputs: npt.NDArray[np.float32]
    generator_state: npt.NDArray[np.uint8]
    device_s: float = 0.0
    step_s: float = 0.0
    returned: npt.NDArray[np.float32] | None = None

    def to_bytes(self) -> bytes:
        """The snapshot as `from_bytes` reads it."""
        return pack(
            {**{name: getattr(self, name) for name in _NUMBERS}, **asdict(self.fingerprint)},
            {name: array for name in (*_ARRAYS, "returned") if (array := getattr(self, name)) is not None},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "LaneSnapshot":
        """The snapshot that `to_bytes` wrote. Raises StateRefused for any other bytes."""
        try:
            plain, arrays = unpack(data)
            step, device_s, step_s = (plain.pop(name) for name in _NUMBERS)
            fingerprint = SnapshotFingerprint(**{**plain, "shape": tuple(plain["shape"])})
            latents, past_samples, past_outputs, generator_state = (arrays[name] for name in _ARRAYS)
            returned = arrays.get("returned")
            return cls(
                fingerprint, step, latents, past_samples, past_outputs, generator_state, device_s, step_s, returned
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StateRefused(f"no lane's state: {type(error).__name__}") from None

    def check(
        self,
        fingerprint: SnapshotFingerprint,
        *,
        steps: int,
        past_samples: int,
        past_outputs: int,
        returned: bool = False,
    ) -> None:
        """Raise StateRefused, saying what differs, unless a lane of that fingerprint can go on from here.

        Args:
            fingerprint: of the lane.
            steps: UNet evaluations of the whole lane, of which at least one must be left.
            past_samples, past_outputs: how many of them the sampler keeps at most.
            returned: whether the sampler reads `returned`.
        """
        names = [field.name for field in fields(fingerprint)]
        differs = [name for name in names if getattr(fingerprint, name) != getattr(self.fingerprint, name)]
        if differs:
            raise StateRefused(f"the state is of a lane with another {', '.join(differs)}")
        if not 0 < self.step < steps:
            raise StateRefused(f"the state is after step {self.step} of {steps}")
        expected = {
            "latents": (np.float32, fingerprint.shape),
            "past_samples": (np.float32, (min(self.step, past_samples), *fingerprint.shape)),
            "past_outputs": (np.float32, (min(self.step, past_outputs), *fingerprint.shape)),
        }
        if returned:
            expected["returned"] = (np.float32, fingerprint.shape)
        for name, (dtype, shape) in expected.items():
            array = getattr(self, name)
            if array is None:
                raise StateRefused(f"the state has no {name}")
            if array.dtype != dtype or array.shape != shape:
                raise StateRefused(f"the state's {name} are {array.dtype} {array.shape}, expected {shape}")


def pack(plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Fields and arrays as one safetensors file, so that nothing stored is a pickle.

    Args:
        plain: values that JSON can hold.
        arrays: of any shape, by names other than "fields".
    """
    described = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    return save({**{name: np.ascontiguousarray(array) for name, array in arrays.items()}, _FIELDS: described})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and arrays that `pack` wrote. Raises ValueError for any other bytes."""
    try:
        arrays = load(data)
        plain = json.loads(arrays.pop(_FIELDS).tobytes())
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"no packed fields and arrays: {error}") from None
    return plain, arrays


_FIELDS = "fields"  # the array that holds the fields as JSON
_NUMBERS = ("step", "device_s", "step_s")
_ARRAYS = ("latents", "past_samples", "past_outputs", "generator_state")
