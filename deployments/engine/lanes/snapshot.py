"""Where a lane is between two steps, as plain data that another engine, on another machine, can go on from.

At a step boundary that is all there is to a lane besides its request and its prompt: the noise of a step is drawn in
that step, and none is left over. No torch here: the front keeps such states and gives them back.
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
    """What the numbers of a lane follow from, its prompt and first latents apart: whoever keeps states knows whose.

    checkpoint_hash: as in DenoiseResult. table: sha256 (hex) over the sampler table's numbers, so of the part of the
    schedule too. shape: of the latents. reproducibility, device, dtype: as in DenoiseResult; another bucket or
    another kind of device rounds differently.
    loras: sha256 (hex) over the UNet's LoRAs and their weights, "" for none. conditions: likewise over what conditions
    it besides the prompt.
    """

    checkpoint_hash: str
    table: str
    shape: tuple[int, int, int]
    reproducibility: str
    device: str
    dtype: str
    loras: str = ""
    conditions: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LaneSnapshot:
    """A lane after `step` UNet evaluations.

    latents: float32 (channels, height / 8, width / 8), as the scheduler holds them.
    past_samples, past_outputs: float32 (n, channels, height / 8, width / 8), newest first: what the sampler looks
        back on, n >= 0.
    generator_state: uint8, 1-D: the lane's CPU generator after its last draw.
    returned: float32, as latents: what the last step returned, before the parts that are kept of an image were put
        back; None where that is of no use any more.
    device_s, step_s: what the lane has cost, as in Progress: it goes on from there, too.
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
        """For a store; `from_bytes` reads it."""
        return pack(
            {**{name: getattr(self, name) for name in _NUMBERS}, **asdict(self.fingerprint)},
            {name: array for name in (*_ARRAYS, "returned") if (array := getattr(self, name)) is not None},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "LaneSnapshot":
        """The state that was stored. Raises StateRefused for anything else."""
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

        steps: UNet evaluations of the whole lane, of which at least one must be left. past_samples, past_outputs: how
        many its sampler keeps at most. returned: it needs what the last step returned, too.
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
    """Plain fields and arrays as one safetensors file, so that nothing stored is a pickle.

    Args:
        plain: as JSON can hold them.
        arrays: of any shape, by names other than "fields".
    """
    described = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    return save({**{name: np.ascontiguousarray(array) for name, array in arrays.items()}, _FIELDS: described})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What was packed, fields and arrays. Raises ValueError for bytes that `pack` didn't make."""
    try:
        arrays = load(data)
        plain = json.loads(arrays.pop(_FIELDS).tobytes())
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"no packed fields and arrays: {error}") from None
    return plain, arrays


_FIELDS = "fields"  # the array that holds the fields as JSON
_NUMBERS = ("step", "device_s", "step_s")
_ARRAYS = ("latents", "past_samples", "past_outputs", "generator_state")
