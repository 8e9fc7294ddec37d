"""Stages that draw nothing but keep the stages' manners, and break on demand: for tests of what is around them.

The real ones stand in tests/e2e. What a prompt says decides what its stage does, or the name of its checkpoint, so that
tests need no other way in.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from deployments.dispatch import Dispatch
from deployments.engine.errors import (
    CheckpointError,
    EngineStopped,
    InvalidRequest,
    NumericalFailure,
    ReplicaFull,
    StateRefused,
)
from deployments.engine.lanes.snapshot import LaneSnapshot, SnapshotFingerprint
from deployments.engine.types import (
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    Detection,
    DetectionRequest,
    Detections,
    Event,
    Pixels,
    Progress,
    PromptEmbedding,
    ReferencePicture,
    SafetyScore,
    StageTimings,
    TextEncodingRequest,
    TilesDone,
    UpscaleEvent,
    UpscaleRequest,
    UpscaleResult,
)
from deployments.replica import StageDescription

# what the stand-in says that the device spent: on a step at 256 x 256, and on decoding
STEP_S, DECODE_S = 0.004, 0.01

# how the prompt reaches the stage: as its embedding's only row
Words = np.ndarray


def describe(name: str) -> StageDescription:
    return StageDescription(name, "replica", "cpu", "float32", 0.0, (), "", ())


def state_after(step: int, request: DenoiseRequest) -> LaneSnapshot:
    shape = (4, request.height // 8, request.width // 8)
    fingerprint = SnapshotFingerprint("0" * 64, "t", shape, "best-effort", "cpu", "float32", **request.parameters())
    past = np.zeros((1, *shape), np.float32)
    return LaneSnapshot(fingerprint, step, np.full(shape, step, np.float32), past, past, np.zeros(5056, np.uint8))


class StandInEncoder:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.checked: list[str] = []
        self.steps: list[int] = []
        self.told: list[tuple[str, ...]] = []
        self.references: tuple[ReferencePicture, ...] = ()

    async def encode(self, request: TextEncodingRequest) -> Conditioning:
        self.asked.append(request.prompt)
        self.steps.append(request.steps)
        self.references = request.references or self.references
        if "forgotten" in request.prompt and self.asked.count(request.prompt) == 1:
            raise EngineStopped("the encoder's device is gone")
        words = np.frombuffer(request.prompt.encode(), np.uint8).astype(np.float32)[None]
        named = {"style": "5" * 64} if "style" in request.prompt.split() else {}
        return Conditioning(PromptEmbedding(words, inversion_hashes=named), None)

    async def retain(self, added: Sequence[str], _dispatch: Dispatch) -> None:
        self.told.append(tuple(added))

    async def retained(self) -> list[tuple[str, ...]]:
        """Of each time that it was to forget checkpoints: those that it was to keep."""
        return self.told

    async def references_asked(self) -> tuple[ReferencePicture, ...]:
        """The pictures of the last request that had some."""
        return self.references

    async def check(self, request: TextEncodingRequest) -> None:
        self.checked.append(request.prompt)
        if "unanswered" in request.prompt:
            raise EngineStopped("the encoder's device is gone")
        if "cut off" in request.prompt:
            raise asyncio.CancelledError  # as of a replica that goes
        tokens = len(request.prompt.split())
        if tokens > 600:
            raise InvalidRequest(f"prompt has {tokens} tokens, which take 9 chunks of 75: at most 8", "prompt")

    async def texts_checked(self) -> list[str]:
        """Of each check the prompt, in order."""
        return self.checked

    async def steps_asked(self) -> list[int]:
        """Of each encoding, in order."""
        return self.steps

    async def describe(self) -> StageDescription:
        return describe("TextEncoder")


class StandInDenoiser:
    """Takes a step at once, in 50 ms ("slow"), or never ("endless"); paints the seed.

    "once": never until it goes on from a state. "refining": never where another stage has begun the image.
    "detailing": never where a part of an image is painted anew.
    """

    def __init__(self) -> None:
        self.lanes: list[DenoiseRequest] = []
        self.left: list[str] = []
        self.told: list[tuple[str, ...]] = []
        self.going = False

    async def denoise(
        self, request: DenoiseRequest, conditioning: Conditioning, _dispatch: Dispatch | None = None
    ) -> AsyncIterator[Event]:
        prompt = conditioning.positive.hidden_states[0].astype(np.uint8).tobytes().decode() + f" {request.checkpoint}"
        self.lanes.append(request)
        lost_before = sum(lane.seed == request.seed for lane in self.lanes) - 1
        if "no room" in prompt and lost_before < 2:
            raise ReplicaFull("the stand-in has no room yet")
        steps = round(request.steps * (request.denoising_end - request.denoising_start))
        if "picky" in prompt and request.resume is not None:
            raise StateRefused("the state is of a lane with another device")
        begun = 0 if request.resume is None else request.resume.step
        goes_on = ("once" in prompt and begun) or ("refining" in prompt and not request.denoising_start)
        goes_on = goes_on or ("detailing" in prompt and request.mask is None)
        hangs = "endless" in prompt and not goes_on
        cost_s = 0.0
        for step in range(begun + 1, steps + 1):
            preview = np.full((4, 4, 3), step % 256, np.uint8) if request.preview_every else None
            if preview is not None and "striped" in prompt:
                preview = np.tile(np.uint8([[[0] * 3], [[255] * 3]]), (16, 32, 1))
            cost_s = STEP_S * step * request.width * request.height / 256**2
            state = state_after(step, request) if request.state_every and step % request.state_every == 0 else None
            yield Progress(request.lane_id, step, steps, preview, cost_s, cost_s, state=state)
            if "slow" in prompt:
                await asyncio.sleep(0.05)
            if "poison" in prompt and step == 3:
                raise NumericalFailure("not-a-number in the latents")
            if "unloadable" in prompt:
                raise CheckpointError("/srv/models/secret/unet.safetensors is missing")
            if "bug" in prompt:
                raise ZeroDivisionError("secret detail")
            if "cut off" in prompt and not lost_before:
                self.going = True
                raise asyncio.CancelledError
            if "always lost" in prompt or ("lost" in prompt and step == 3 and lost_before < 2):
                raise EngineStopped("the engine's thread is gone")
            if hangs:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.append(request.lane_id)
        size = request.height, request.width
        latents = request.output == "latents"
        yield DenoiseResult(
            lane_id=request.lane_id,
            seed=request.seed,
            variation_seed=request.variation_seed,
            checkpoint=request.checkpoint,
            checkpoint_hash="0" * 64,
            reproducibility="best-effort",
            timings=StageTimings(0.0, 0.1, DECODE_S, cost_s + DECODE_S),
            conditioning_hashes={
                kind: {one.name: f"{number:x}" * 64 for number, one in reversed([*enumerate(of_kind)])}
                for kind, of_kind in (("controls", request.controls), ("references", request.references))
            },
            inversion_hashes=conditioning.inversion_hashes,
            lora_hashes={name: f"{number:x}" * 64 for number, name in enumerate(request.lora_names)},
            vae_hash=None if request.vae is None else "7" * 64,
            device="cpu",
            dtype="float32",
            image=None if latents else np.full((*size, 3), request.seed % 256, np.uint8),
            latents=np.zeros((4, size[0] // 8, size[1] // 8), np.float32) if latents else None,
        )

    async def check_schedule(self, request: DenoiseRequest) -> None:
        if request.sampler.endswith("_karras") and request.strength is not None and request.strength < 0.4:
            raise InvalidRequest(f"no step is left before denoising_end {request.denoising_end}", "denoising_end")

    async def retain(self, added: Sequence[str], _dispatch: Dispatch) -> None:
        self.told.append(tuple(added))

    async def retained(self) -> list[tuple[str, ...]]:
        """As the encoder's."""
        return self.told

    async def lanes_asked(self) -> list[DenoiseRequest]:
        """Every lane, in order."""
        return self.lanes

    async def lanes_begun(self, job_id: str) -> list[tuple[str, int]]:
        """Of a job: each lane's id, and the step that it went on from."""
        mine = [lane for lane in self.lanes if lane.lane_id.startswith(job_id)]
        return [(lane.lane_id, 0 if lane.resume is None else lane.resume.step) for lane in mine]

    async def lanes_left(self) -> list[str]:
        """Endless lanes that were taken out."""
        return self.left

    async def describe(self) -> StageDescription:
        if self.going:
            self.going = False
            raise asyncio.CancelledError
        return describe("SD15")


class StandInClassifier:
    """Images of odd seeds are unsafe."""

    def __init__(self) -> None:
        self.count = 0

    async def classify(self, image: Pixels) -> SafetyScore:
        self.count += 1
        odd = bool(image[0, 0, 0] % 2)
        return SafetyScore(0.95 if odd else 0.01, odd, ("classifier",) if odd else ())

    async def describe(self) -> StageDescription:
        return describe("NSFWClassifier")

    async def images_classified(self) -> int:
        """How many."""
        return self.count


class StandInUpscaler:
    """Repeats pixels in place of a model, in two tiles. "endless": after the first never. "lost": at first."""

    def __init__(self) -> None:
        self.requests: list[UpscaleRequest] = []
        self.left: list[str] = []

    async def upscale(self, request: UpscaleRequest) -> AsyncIterator[UpscaleEvent]:
        self.requests.append(request)
        yield TilesDone(1, 2, STEP_S, STEP_S)
        if "lost" in request.upscaler and len(self.requests) == 1:
            raise EngineStopped("the upscaler's device is gone")
        if "endless" in request.upscaler:
            try:
                await asyncio.Event().wait()
            finally:
                self.left.append(request.upscaler)
        yield TilesDone(2, 2, 2 * STEP_S, 2 * STEP_S)
        rows = np.arange(request.height) * request.image.shape[0] // request.height
        columns = np.arange(request.width) * request.image.shape[1] // request.width
        enlarged = request.image[rows][:, columns]
        yield UpscaleResult(enlarged, "a" * 64, "cpu", "float32", 2 * STEP_S, 2 * STEP_S)

    async def requests_asked(self) -> list[UpscaleRequest]:
        """Every one, in order."""
        return self.requests

    async def requests_left(self) -> list[str]:
        """The names of the models of those that were given up."""
        return self.left

    async def describe(self) -> StageDescription:
        return describe("Upscaler")


# what a stand-in detector finds in a picture of 256 x 256, by the detector's name
FOUND = {
    "apart": (Detection("circle", 0.9, 20, 20, 60, 60), Detection("square", 0.8, 180, 160, 240, 220)),
    "touching": (
        Detection("circle", 0.9, 60, 60, 120, 120),
        Detection("circle", 0.5, 110, 110, 150, 150),
        Detection("circle", 0.5, 145, 145, 170, 170),
    ),
    "nothing": (),
}


class StandInDetector:
    """Finds what is in FOUND, or two things "apart". "lost": not at first."""

    def __init__(self) -> None:
        self.requests: list[DetectionRequest] = []

    async def detect(self, request: DetectionRequest) -> Detections:
        self.requests.append(request)
        if "lost" in request.detector and sum(one.detector == request.detector for one in self.requests) == 1:
            raise EngineStopped("the detector's device is gone")
        found = FOUND.get(request.detector, FOUND["apart"])
        return Detections(tuple(one for one in found if one.score >= request.confidence), "d" * 64)

    async def requests_asked(self) -> list[DetectionRequest]:
        """Every one, in order."""
        return self.requests

    async def describe(self) -> StageDescription:
        return describe("Detector")
