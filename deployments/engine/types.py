"""The words of the engine: what a stage is asked for and what it answers.

Everything here is plain data (numpy arrays on the CPU, strings, numbers), frozen and picklable, because it crosses
process borders.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from deployments.engine.lanes.snapshot import LaneSnapshot
from deployments.engine.parameters import DenoisingParameters
from deployments.engine.prompts.syntax import Lora

Array = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

LATENT_SCALE = 8  # pixels per latent cell: what SD's and SDXL's autoencoders have in common
MAX_CONTROLS = 4  # of one lane
MASKED = 128  # a mask's pixels from here on are painted anew


LatentUpscaler = Literal[
    "latent",
    "latent_antialiased",
    "latent_bicubic",
    "latent_bicubic_antialiased",
    "latent_nearest",
    "latent_nearest_exact",
]


class Priority(IntEnum):
    """Higher runs first; lanes of a lower class wait at a step boundary while a batch is full."""

    BATCH = 0
    NORMAL = 1
    INTERACTIVE = 2


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """One encoded text.

    hidden_states: float32, (tokens, channels); for SDXL both encoders' channels, the first encoder's first.
    pooled: float32, (channels,), SDXL only (the second encoder's projection).
    empty: the text was "" (SDXL checkpoints may ask for zeros in its place).
    """

    hidden_states: Array
    pooled: Array | None = None
    empty: bool = False


@dataclass(frozen=True, slots=True)
class PromptEdit:
    """Other texts from an inference step on, counted from 0 over the whole schedule, before anything cuts it."""

    step: int
    positive: PromptEmbedding
    negative: PromptEmbedding | None


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a generation is conditioned on; `negative` is None where guidance is off (guidance_scale <= 1).

    edits: what takes the first texts' place later, by rising step; with a negative where the first has one.
    """

    positive: PromptEmbedding
    negative: PromptEmbedding | None
    edits: tuple[PromptEdit, ...] = ()

    @property
    def tokens(self) -> int:
        """Of the longest text: the others are filled up to it for the UNet, which doesn't look there."""
        return max(self._lengths)

    @property
    def filled_up(self) -> bool:
        """The texts are of different lengths."""
        return len(self._lengths) > 1

    @property
    def _lengths(self) -> set[int]:
        embeddings = [self.positive, self.negative]
        for edit in self.edits:
            embeddings += [edit.positive, edit.negative]
        return {one.hidden_states.shape[0] for one in embeddings if one is not None}


@dataclass(frozen=True, slots=True)
class Control:
    """A ControlNet that steers an image (arXiv:2302.05543).

    name: of the ControlNets' folder. image: uint8 (height, width, 3), as large as the image: what it looks at.
    scale: how strongly; 1 is as it was trained. start, end: fractions of the steps between which it steers, as
        diffusers' control_guidance_start and control_guidance_end.
    """

    name: str
    image: Pixels
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class DenoiseRequest(DenoisingParameters):
    """One image to be denoised by one stage: a lane. `steps` counts before `denoising_start`, `denoising_end` or
    `strength` cut the schedule.

    lane_id: unique among the requests in flight.
    checkpoint: a name of the stage's catalogue.
    denoising_start, denoising_end: fractions of the schedule, as in diffusers' SDXL pipelines. A start above 0
        needs `latents`, still noisy, from the stage before.
    strength: how much of the schedule runs on `image`; None for text to image or a hand-over.
    latents: float32 (channels, height / 8, width / 8): the noisy latents of the stage before.
    enlarge: how `latents`, then those of a finished picture of any size, are brought to this one's to begin with in
        place of `image`; needs a `strength`. None takes latents as they are.
    image: uint8 (height, width, 3): the picture img2img starts from.
    mask: uint8 (height, width), needs `image`: what is 128 or more is painted anew, the rest keeps to the image. A
        stage that takes over needs both again.
    generator_state: the CPU generator's state where the stage before left it, so that base and refiner draw from
        one stream of random numbers; None starts a fresh generator from `seed`.
    output: "image" decodes with the stage's VAE, "latents" hands over to the next stage.
    reproducible: pins the batch bucket and decodes alone: the same bytes whatever load shares the device.
    priority, tenant: how the batcher chooses among lanes.
    waited_s: seconds that the image has waited already, in a stage before or in lanes of it that were lost; the batcher
        goes by the whole wait, so that whoever loses its lane keeps its place.
    timeout_s: seconds from submission after which the lane fails with DeadlineExceeded; None for no limit.
    preview_every: steps between previews in Progress; 0 for none.
    state_every: UNet evaluations between two states in Progress; 0 for none, also not when the engine is stopped.
    resume: where another lane of this request stopped; then `latents` and `generator_state` aren't looked at, nor is
        `image` unless there is a mask.
    aesthetic_score, negative_aesthetic_score: conditions of an SDXL refiner; unused elsewhere.
    loras: applied to the UNet, each name once.
    controls: what steers the UNet, at most MAX_CONTROLS, each name once; what they say is added up.
    """

    lane_id: str
    checkpoint: str
    denoising_start: float = 0.0
    denoising_end: float = 1.0
    strength: float | None = None
    latents: Array | None = None
    enlarge: LatentUpscaler | None = None
    image: Pixels | None = None
    mask: Pixels | None = None
    generator_state: Pixels | None = None
    output: Literal["image", "latents"] = "image"
    reproducible: bool = False
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    waited_s: float = 0.0
    timeout_s: float | None = None
    preview_every: int = 0
    state_every: int = 0
    resume: LaneSnapshot | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """A lane moved on: `step` of `steps` UNet evaluations of this stage are done.

    preview: uint8 (height / 8, width / 8, 3), a linear estimate of the image from the latents, where asked for.
    device_s: device seconds that the lane was charged so far: its share, by rows, of each step it took part in.
    step_s: those steps' whole seconds, which it took together with whoever shared them; waits between steps apart.
    state: where the lane is now, where asked for.
    """

    lane_id: str
    step: int
    steps: int
    preview: Pixels | None = None
    device_s: float = 0.0
    step_s: float = 0.0
    state: LaneSnapshot | None = None


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds that a lane spent in a stage.

    queued_s: before its first step. denoise_s: from there to its last, waits included. decode_s: its share of the VAE.
    device_s: what the device spent on it: its share of its steps, and decode_s.
    """

    queued_s: float
    denoise_s: float
    decode_s: float
    device_s: float


@dataclass(frozen=True, slots=True)
class DenoiseResult:
    """The end of a lane that succeeded: exactly one of `image` and `latents` is set, as the request's `output` says.

    image: uint8 (height, width, 3). latents: float32 (channels, height / 8, width / 8).
    reproducibility: "bucket:<rows>" where the bucket was pinned, else "best-effort".
    checkpoint_hash: sha256 over the checkpoint's UNet weight files, for the manifest.
    device, dtype: where it was drawn ("cpu", "cuda"; "float32", …, "float16+int8" with weights in 8 bits), for the
        manifest too.
    generator_state: uint8, 1-D: the lane's CPU generator after its last draw; set with `latents`, for the next stage.
    lora_hashes: sha256 of each LoRA's file, by the LoRA's name, for the manifest. conditioning_hashes: likewise of its
        conditionings' files, by the field of DenoiseRequest that names them, then by name.
    """

    lane_id: str
    seed: int
    checkpoint: str
    checkpoint_hash: str
    reproducibility: str
    timings: StageTimings
    device: str
    dtype: str
    image: Pixels | None = None
    latents: Array | None = None
    generator_state: Pixels | None = None
    lora_hashes: dict[str, str] = field(default_factory=dict)
    conditioning_hashes: dict[str, dict[str, str]] = field(default_factory=dict)


Event = Progress | DenoiseResult


@dataclass(frozen=True, slots=True)
class TextEncodingRequest:
    """Texts of one generation to encode with a checkpoint's text encoders.

    checkpoint: a name of the catalogue. negative_prompt: None where guidance is off.
    Prompts are in the syntax of prompts/syntax.py.
    clip_skip: how many of the encoder's last layers to leave out (0: the checkpoint's own choice), of both prompts;
        diffusers' pipelines leave the negative prompt's in.
    prompt_2, negative_prompt_2: for SDXL's second text encoder; None tells it the same as the first. A
        negative_prompt_2 needs a negative_prompt.
    steps: inference steps that the pass takes, over which a prompt may change. skipped: those of its schedule that a
        strength leaves out before. before: those that the generation's pass before it took, 0 for the first.
    loras: applied to the encoders, for all prompts, each name once; those that the prompts' own tags name count for
        nothing here.
    """

    checkpoint: str
    prompt: str
    negative_prompt: str | None
    clip_skip: int = 0
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    steps: int = 1
    skipped: int = 0
    before: int = 0
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True, slots=True)
class UpscaleRequest:
    """One picture to be enlarged by a model.

    upscaler: a name of the upscalers' folder. image: uint8 (height, width, 3). width, height: of the result.
    """

    upscaler: str
    image: Pixels
    width: int
    height: int
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class TilesDone:
    """So many of a picture's tiles have gone through the model.

    device_s: what they have cost of the device: of each batch their share. upscale_s: seconds since it began.
    """

    done: int
    tiles: int
    device_s: float
    upscale_s: float


@dataclass(frozen=True, slots=True)
class UpscaleResult:
    """The enlarged picture: uint8 (height, width, 3).

    upscaler_hash: sha256 of the model's file. device, dtype: as in DenoiseResult. device_s, upscale_s: as in TilesDone.
    """

    image: Pixels
    upscaler_hash: str
    device: str
    dtype: str
    device_s: float
    upscale_s: float


UpscaleEvent = TilesDone | UpscaleResult


@dataclass(frozen=True, slots=True)
class SafetyScore:
    """One image's score by the classifier and, where it is switched on, by diffusers' safety checker.

    score: probability of the unsafe label, 0..1. flagged_by: names of the layers that flagged it, empty if clean.
    """

    score: float
    flagged: bool
    flagged_by: tuple[str, ...] = field(default=())
