"""Requests, results and events of the stages: frozen and picklable, numpy arrays on the CPU, to cross processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from deployments.engine.lanes.snapshot import LaneSnapshot
from deployments.engine.parameters import DenoisingParameters
from deployments.engine.prompts.syntax import MAX_COMPOSED, Lora

if TYPE_CHECKING:
    from deployments.engine.checkpoints.spec import AddedCheckpoint, CheckpointSpec

Array = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

LATENT_SCALE = 8  # pixels per latent cell: what SD's and SDXL's autoencoders have in common
MAX_CONTROLS = 4  # of one lane
MAX_REFERENCES = 4  # likewise
MAX_REGIONS = MAX_COMPOSED - 1  # likewise: with the prompt as many rows as prompts that are composed
MAX_DETECTIONS = 100  # of one picture
MASKED = 128  # a mask's pixels from here on are painted anew


MaskedContent = Literal["image", "noise", "nothing"]
"""What denoising begins with where a mask is: the image's latents, noise alone, or zeros."""

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

    Attributes:
        hidden_states: (tokens, channels), float32; for SDXL the first encoder's channels, then the second's.
        pooled: (channels,), float32, the second encoder's projection; SDXL only.
        empty: whether the text was "": SDXL checkpoints may replace it by zeros.
        inversion_hashes: SHA-256 of the file of each textual inversion that the text names, by its name.
    """

    hidden_states: Array
    pooled: Array | None = None
    empty: bool = False
    inversion_hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptEdit:
    """Other texts from inference step `step` on, counted from 0 over the whole schedule, before it is cut."""

    step: int
    positive: PromptEmbedding
    negative: PromptEmbedding | None
    composed: tuple[PromptEmbedding, ...] = ()


@dataclass(frozen=True, slots=True)
class ReferenceFeatures:
    """A reference picture as CLIP's vision model sees it.

    Attributes:
        positive: (channels,), float32, its projection; or (patches, channels), the states of the last layer but one.
        negative: the same of what stands for no picture, for the negative prompt's row.
    """

    positive: Array
    negative: Array


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The encoded texts and reference pictures of a generation.

    Attributes:
        positive: of the prompt.
        negative: of the negative prompt; None without guidance (guidance_scale <= 1).
        edits: texts that replace these later, by rising step; each has a negative and as many composed ones as the
            first one does.
        references: of the request's references, in their order.
        encode_s: seconds from the request to these, waits for a batch included.
        composed: of the prompts that are composed with the first (prompts/syntax.py), or of the regions'.
        weights: of the first prompt and the composed ones; of a prompt alone and of regions' they have no effect.
    """

    positive: PromptEmbedding
    negative: PromptEmbedding | None
    edits: tuple[PromptEdit, ...] = ()
    references: tuple[ReferenceFeatures, ...] = ()
    encode_s: float = 0.0
    composed: tuple[PromptEmbedding, ...] = ()
    weights: tuple[float, ...] = (1.0,)

    @property
    def tokens(self) -> int:
        """Tokens of the longest text; the others are padded to it, and masked."""
        return max(self._lengths)

    @property
    def filled_up(self) -> bool:
        """Whether texts are padded, because their lengths differ."""
        return len(self._lengths) > 1

    @property
    def inversion_hashes(self) -> dict[str, str]:
        """SHA-256 of the file of each textual inversion that a text names, by its name."""
        return {name: digest for one in self._texts for name, digest in one.inversion_hashes.items()}

    @property
    def _lengths(self) -> set[int]:
        return {one.hidden_states.shape[0] for one in self._texts}

    @property
    def _texts(self) -> list[PromptEmbedding]:
        texts = [self.positive, *self.composed, self.negative]
        for edit in self.edits:
            texts += [edit.positive, *edit.composed, edit.negative]
        return [text for text in texts if text is not None]


@dataclass(frozen=True, slots=True)
class Control:
    """A ControlNet that steers an image (arXiv:2302.05543).

    Attributes:
        name: its file in the ControlNets' folder.
        image: (height, width, 3), uint8, of the request's size: the picture that it follows.
        scale: factor of its residuals; 1 is as trained.
        start, end: fractions of the steps between which it steers: diffusers' control_guidance_start and _end.
    """

    name: str
    image: Pixels
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture that an IP-Adapter (arXiv:2308.06721) shows to an image; its features come with the texts.

    Attributes:
        name: of the IP-Adapter's file in its folder.
        scale: factor of what its attention adds; 1 is as trained.
        start, end: fractions of the steps between which it is shown, as of a Control.
        mask: (height, width), uint8, of the request's size: from 128 on the picture is shown; None shows it everywhere.
    """

    name: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image that has a prompt of its own, whose embedding comes with the texts.

    Attributes:
        mask: (height, width), uint8, of the request's size: 255 in the region, 0 outside, in between for soft edges.
        weight: above 0, of what the model predicts for its prompt, against other regions' and the base_weight.
        loras: applied to the UNet for its prompt, each name once; None for the request's.
    """

    mask: Pixels
    weight: float = 1.0
    loras: tuple[Lora, ...] | None = None


@dataclass(frozen=True, slots=True)
class DenoiseRequest(DenoisingParameters):
    """One image to be denoised by one stage: a lane.

    Attributes:
        lane_id: unique among the requests in flight.
        checkpoint: a name of the stage's catalogue, or of `added`.
        denoising_start, denoising_end: fractions of the schedule, as in diffusers' SDXL pipelines. A start above 0
            needs the noisy `latents` of the stage before.
        strength: fraction of the schedule that runs on `image`; None for text to image or a hand-over.
        latents: (channels, height / 8, width / 8), float32, noisy, of the stage before.
        enlarge: how `latents` of a finished picture of any size are resized, to begin with in place of `image`; needs a
            `strength`. They cover the request's size, and what is beyond it is cut off. Without `latents` those of
            `image`, which may have any size then, are stretched. None takes latents and image as they are.
        image: (height, width, 3), uint8, the picture that img2img starts from.
        mask: (height, width), uint8: from 128 on painted anew, below kept as in `image`, which it needs. The next stage
            needs both again.
        masked_content: what begins there.
        generator_state: uint8, of the CPU generator at the end of the stage before, so that base and refiner draw from
            one stream of random numbers; None for a new generator with `seed`.
        output: "image" decodes with the stage's VAE, "latents" hands over to the next stage.
        reproducible: pins the batch bucket and decodes alone: the same bytes whatever load shares the device.
        waited_s: seconds that the image has waited in stages before, or in lanes that were lost; the batcher adds them,
            so that a lost lane keeps its place.
        timeout_s: seconds from submission after which the lane fails with DeadlineExceeded; None for no limit.
        preview_every: steps between previews in Progress; 0 for none.
        state_every: UNet evaluations between snapshots in Progress; 0 for none, not even when the engine stops.
        resume: the snapshot of this request's lost lane to go on from. `latents` and `generator_state` are ignored
            then, and `image` too unless there is a mask.
        aesthetic_score, negative_aesthetic_score: conditions of an SDXL refiner; unused elsewhere.
        loras: applied to the UNet, each name once.
        controls: at most MAX_CONTROLS; their residuals are added up.
        references: at most MAX_REFERENCES; what they add to the UNet's attention is added up.
        composed_prompts: how many prompts its prompt is composed of, or has with its regions; their embeddings come
            with the texts.
        regions: at most MAX_REGIONS; with them the prompt itself is not composed.
        base_weight: of the prompt where regions are, 0..1.
        vae: encodes and decodes in place of the checkpoint's own: a name in the VAEs' folder.
        checkpoint_hash: SHA-256 that the checkpoint's UNet weight files must have; None for any.
        added: the checkpoint, if the stage's settings don't name it.
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
    masked_content: MaskedContent = "image"
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
    references: tuple[Reference, ...] = ()
    composed_prompts: int = 1
    regions: tuple[Region, ...] = ()
    base_weight: float = 0.0
    vae: str | None = None
    checkpoint_hash: str | None = None
    added: "AddedCheckpoint | None" = None

    @property
    def lora_names(self) -> tuple[str, ...]:
        """Of its LoRAs and then its regions', each once."""
        of_regions = (lora for region in self.regions for lora in region.loras or ())
        return tuple(dict.fromkeys(lora.name for lora in (*self.loras, *of_regions)))


@dataclass(frozen=True, slots=True)
class Progress:
    """A lane's progress in this stage.

    Attributes:
        step: UNet evaluations done.
        steps: UNet evaluations in all.
        preview: (height / 8, width / 8, 3), uint8, a linear estimate of the image, if the request wants previews.
        device_s: device seconds charged to the lane so far: its share, by rows, of each step that it took part in.
        step_s: the whole seconds of these steps, without the waits between them.
        state: a snapshot, if the request wants them.
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

    Attributes:
        queued_s: before its first step.
        denoise_s: from there to its last step, waits included.
        decode_s: its share of its decode batch.
        device_s: its share of its steps, and decode_s.
        encode_s: what the text encoder took for its conditioning.
    """

    queued_s: float
    denoise_s: float
    decode_s: float
    device_s: float
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DenoiseResult:
    """The result of a lane: `image` or `latents`, as the request's `output` says.

    Attributes:
        checkpoint_hash: SHA-256 over the checkpoint's UNet weight files.
        reproducibility: "bucket:<rows>" if the bucket was pinned, else "best-effort".
        device: "cpu" or "cuda".
        dtype: of the UNet: "float32", …; "float16+int8" with weights in 8 bits.
        image: (height, width, 3), uint8.
        latents: (channels, height / 8, width / 8), float32.
        generator_state: 1-D, uint8, the lane's CPU generator after its last draw; set with `latents`.
        lora_hashes: SHA-256 of each LoRA's file, by the LoRA's name.
        inversion_hashes: likewise of the textual inversions that its prompts name.
        conditioning_hashes: likewise of its conditionings' files, by the field of DenoiseRequest, then by name.
        vae_hash: likewise over the files of the VAE that the request names; None if it names none.
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
    variation_seed: int = 0
    lora_hashes: dict[str, str] = field(default_factory=dict)
    inversion_hashes: dict[str, str] = field(default_factory=dict)
    conditioning_hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    vae_hash: str | None = None


Event = Progress | DenoiseResult


@dataclass(frozen=True, slots=True)
class ReferencePicture:
    """A reference picture to be seen by an image encoder.

    Attributes:
        pixels: (height, width, 3), uint8, of any size.
        patches: whether its IP-Adapter takes the states of the patches, or the projection.
        channels: of what it takes; they tell image encoders apart.
    """

    pixels: Pixels
    patches: bool
    channels: int


@dataclass(frozen=True, slots=True)
class TextEncodingRequest:
    """Texts and reference pictures of one generation to encode with a checkpoint's text encoders and an image encoder.

    Attributes:
        checkpoint: a name of the catalogue, or of `spec`.
        prompt: in the syntax of prompts/syntax.py, as the other texts.
        negative_prompt: None without guidance.
        clip_skip: how many of the encoder's last layers to leave out, for both prompts; 0 is the checkpoint's own
            choice. diffusers' pipelines apply it to the prompt alone.
        prompt_2, negative_prompt_2: for SDXL's second text encoder; None gives it the first one's. negative_prompt_2
            needs a negative_prompt.
        regions: prompts of regions, of both of SDXL's encoders; AND is a word in them.
        region_loras: applied to the encoders for each region's prompt; None for `loras`. Empty if all have these.
        steps: inference steps of this pass, over which a prompt may change.
        skipped: inference steps that `strength` leaves out before these.
        before: inference steps of the generation's pass before this one; 0 for the first.
        loras: applied to the encoders, for all texts, each name once. Tags in the texts are ignored.
        references: pictures for IP-Adapters.
        spec: the checkpoint, if the stage's settings don't name it.
    """

    checkpoint: str
    prompt: str
    negative_prompt: str | None
    clip_skip: int = 0
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    regions: tuple[str, ...] = ()
    region_loras: tuple[tuple[Lora, ...] | None, ...] = ()
    steps: int = 1
    skipped: int = 0
    before: int = 0
    loras: tuple[Lora, ...] = ()
    references: tuple[ReferencePicture, ...] = ()
    spec: "CheckpointSpec | None" = None


@dataclass(frozen=True, slots=True)
class UpscaleRequest:
    """One picture to be enlarged by a model.

    Attributes:
        upscaler: a name of the upscalers' folder.
        image: (height, width, 3), uint8.
        width, height: pixels of the result.
    """

    upscaler: str
    image: Pixels
    width: int
    height: int
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class TilesDone:
    """Progress of an upscaling.

    Attributes:
        done: tiles that have gone through the model.
        tiles: in all.
        device_s: device seconds of those that are done: their share of each batch.
        upscale_s: seconds since it began.
    """

    done: int
    tiles: int
    device_s: float
    upscale_s: float


@dataclass(frozen=True, slots=True)
class UpscaleResult:
    """The enlarged picture; the other fields as in DenoiseResult and TilesDone.

    Attributes:
        image: (height, width, 3), uint8.
        upscaler_hash: SHA-256 of the model's file.
    """

    image: Pixels
    upscaler_hash: str
    device: str
    dtype: str
    device_s: float
    upscale_s: float


UpscaleEvent = TilesDone | UpscaleResult


@dataclass(frozen=True, slots=True)
class DetectionRequest:
    """One picture in which something is to be found.

    Attributes:
        detector: a name of the detectors' folder.
        image: (height, width, 3), uint8.
        confidence: probability from which on something counts, 0..1.
    """

    detector: str
    image: Pixels
    confidence: float


@dataclass(frozen=True, slots=True)
class Detection:
    """Something that was found.

    Attributes:
        label: a class of the detector's.
        score: its probability, 0..1.
        left, top, right, bottom: pixels of the picture; the last two are beyond.
    """

    label: str
    score: float
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in a picture, the surest first; `detector_hash` is the SHA-256 of the detector's file."""

    detections: tuple[Detection, ...]
    detector_hash: str


@dataclass(frozen=True, slots=True)
class SafetyScore:
    """One image's score by the classifier and, if it is switched on, by diffusers' safety checker.

    Attributes:
        score: probability of the unsafe label, 0..1.
        flagged_by: names of the layers that flagged it; empty if clean.
    """

    score: float
    flagged: bool
    flagged_by: tuple[str, ...] = field(default=())
