"""Where a lane is between two steps, as plain data that another engine, on another machine, can go on from.

At a step boundary that is all there is to a lane besides its request and its prompt: the noise of a step is drawn in
that step, and none is left over. No torch here: the front keeps such states and gives them back.
"""

from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from deployments.engine.errors import StateRefused
from deployments.engine.lanes.packing import pack, unpack


@dataclass(frozen=True, slots=True)
class LaneOrigin:
    """What the numbers of a lane follow from, its prompt and first latents apart: whoever keeps states knows whose.

    checkpoint_hash: as in DenoiseResult. table: sha256 (hex) over the sampler table's numbers, so of the part of the
    schedule too. shape: of the latents. reproducibility, device, dtype: as in DenoiseResult; another bucket or
    another kind of device rounds differently. guidance_rescale, guidance_start, guidance_end: as in DenoiseRequest.
    loras: sha256 (hex) over what the UNet wears, "" for nothing. controls: likewise over what steers it.
    """

    checkpoint_hash: str
    table: str
    seed: int
    guidance_scale: float
    shape: tuple[int, int, int]
    reproducibility: str
    device: str
    dtype: str
    guidance_rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    loras: str = ""
    controls: str = ""


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

    origin: LaneOrigin
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
            {**{name: getattr(self, name) for name in _NUMBERS}, **asdict(self.origin)},
            {name: array for name in (*_ARRAYS, "returned") if (array := getattr(self, name)) is not None},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "LaneSnapshot":
        """The state that was stored. Raises StateRefused for anything else."""
        try:
            plain, arrays = unpack(data)
            step, device_s, step_s = (plain.pop(name) for name in _NUMBERS)
            origin = LaneOrigin(**{**plain, "shape": tuple(plain["shape"])})
            latents, past_samples, past_outputs, generator_state = (arrays[name] for name in _ARRAYS)
            returned = arrays.get("returned")
            return cls(origin, step, latents, past_samples, past_outputs, generator_state, device_s, step_s, returned)
        except (ValueError, KeyError, TypeError) as error:
            raise StateRefused(f"no lane's state: {type(error).__name__}") from None

    def check(
        self, origin: LaneOrigin, *, steps: int, past_samples: int, past_outputs: int, returned: bool = False
    ) -> None:
        """Raise StateRefused, saying what differs, unless a lane of `origin` can go on from here.

        steps: UNet evaluations of the whole lane, of which at least one must be left. past_samples, past_outputs: how
        many its sampler keeps at most. returned: it needs what the last step returned, too.
        """
        differs = [one.name for one in fields(origin) if getattr(origin, one.name) != getattr(self.origin, one.name)]
        if differs:
            raise StateRefused(f"the state is of a lane with another {', '.join(differs)}")
        if not 0 < self.step < steps:
            raise StateRefused(f"the state is after step {self.step} of {steps}")
        expected = {
            "latents": (np.float32, origin.shape),
            "past_samples": (np.float32, (min(self.step, past_samples), *origin.shape)),
            "past_outputs": (np.float32, (min(self.step, past_outputs), *origin.shape)),
        }
        if returned:
            expected["returned"] = (np.float32, origin.shape)
        for name, (dtype, shape) in expected.items():
            array = getattr(self, name)
            if array is None:
                raise StateRefused(f"the state has no {name}")
            if array.dtype != dtype or array.shape != shape:
                raise StateRefused(f"the state's {name} are {array.dtype} {array.shape}, expected {shape}")


_NUMBERS = ("step", "device_s", "step_s")
_ARRAYS = ("latents", "past_samples", "past_outputs", "generator_state")
