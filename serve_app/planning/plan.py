"""Which stages a generation needs, in which order, with what: ResolvedGeneration -> Plan.

Pure: knows no handles, no store, no clock. What runs a plan is jobs/runner.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import Array, Control, DenoiseRequest, Pixels, Priority, TextEncodingRequest
from serve_app.config.settings import STAGE_OF_FAMILY, Settings
from serve_app.schemas.resolved_generation import HiresInput, ResolvedGeneration

PRIORITIES = {"batch": Priority.BATCH, "normal": Priority.NORMAL, "interactive": Priority.INTERACTIVE}

# previews of one stage of one image: enough to watch, few enough not to cost
_PREVIEWS = 10


@dataclass(frozen=True, slots=True)
class DenoiseStage:
    """One denoising stage of every image.

    stage: its key in the settings' `stages`. checkpoint: of its catalogue.
    denoising_start, denoising_end: fractions of the schedule. output: decoded, or handed over.
    strength: how much of the schedule runs where the stage begins with a picture.
    hires: set where it is the generation's second pass. loras: what its UNet wears; a refiner's wears none.
    """

    stage: str
    checkpoint: str
    denoising_start: float = 0.0
    denoising_end: float = 1.0
    output: Literal["image", "latents"] = "image"
    strength: float | None = None
    hires: HiresInput | None = None
    loras: tuple[Lora, ...] = ()

    def drawn(self, generation: ResolvedGeneration) -> ResolvedGeneration | HiresInput:
        """Whose width, height, steps and sampler are this stage's."""
        return self.hires or generation

    @property
    def steered(self) -> bool:
        """By the generation's ControlNets: they are for what begins the image, not for a refiner."""
        return not self.denoising_start

    def rows(self, generation: ResolvedGeneration) -> float:
        """Of the UNet, over all steps on average."""
        return 1 + (generation.guidance_end - generation.guidance_start if generation.guidance_scale > 1 else 0.0)

    @property
    def share(self) -> float:
        """The part of the schedule's steps that the stage takes, 0..1."""
        start = self.denoising_start if self.strength is None else 1 - self.strength
        return max(0.0, self.denoising_end - start)


@dataclass(frozen=True, slots=True)
class HandOver:
    """What one denoising stage leaves to the next.

    latents: float32 (channels, height / 8, width / 8), still noisy.
    generator_state: uint8 of the image's random generator after its last draw.
    """

    latents: Array
    generator_state: Pixels | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be done for a generation: one encoding, the stages for each seed, a classification or none."""

    generation: ResolvedGeneration
    encoding: TextEncodingRequest
    stages: tuple[DenoiseStage, ...]
    classify: bool

    @property
    def hires_encoding(self) -> TextEncodingRequest | None:
        """The encoding for a second pass, over whose steps a prompt's changes go on; None without one."""
        hires = self.generation.hires
        if hires is None:
            return None
        taken = hires.taken_steps
        return replace(self.encoding, steps=taken, skipped=hires.steps - taken, before=self.generation.taken_steps)

    def denoise(
        self,
        stage: DenoiseStage,
        *,
        lane_id: str,
        seed: int,
        tenant: str = "",
        waited_s: float = 0.0,
        timeout_s: float,
        given: HandOver | None,
        image: Pixels | None = None,
        mask: Pixels | None = None,
        looked_at: Sequence[Pixels] = (),
        state_every: int = 0,
    ) -> DenoiseRequest:
        """The request to `stage` for the image of `seed`; `given` comes from the stage before.

        waited_s: since the job was accepted.
        image, mask: what it begins with, as in DenoiseRequest. looked_at: by the ControlNets, one picture each.
        state_every: UNet evaluations between two of the lane's states; 0 for none.
        """
        generation, drawn = self.generation, stage.drawn(self.generation)
        return DenoiseRequest(
            lane_id=lane_id,
            checkpoint=stage.checkpoint,
            seed=seed,
            steps=drawn.steps,
            guidance_scale=generation.guidance_scale,
            guidance_rescale=generation.guidance_rescale,
            guidance_start=generation.guidance_start,
            guidance_end=generation.guidance_end,
            width=drawn.width,
            height=drawn.height,
            sampler=drawn.sampler,
            denoising_start=stage.denoising_start,
            denoising_end=stage.denoising_end,
            strength=stage.strength,
            loras=stage.loras,
            controls=tuple(
                Control(control.model, picture, control.scale, control.start, control.end)
                for control, picture in zip(generation.controlnets, looked_at, strict=False)
            ),
            image=image if given is None or mask is not None else None,
            mask=mask,
            latents=None if given is None else given.latents,
            enlarge=None if stage.hires is None else stage.hires.latent_upscaler,
            generator_state=None if given is None else given.generator_state,
            output=stage.output,
            reproducible=generation.reproducible,
            priority=PRIORITIES[generation.priority],
            tenant=tenant,
            waited_s=waited_s,
            timeout_s=timeout_s,
            state_every=state_every,
            preview_every=-(-drawn.steps // _PREVIEWS) if generation.preview else 0,
        )


def plan(generation: ResolvedGeneration, settings: Settings) -> Plan:
    """The plan of a generation. Raises KeyError for a model that the catalogue no longer has."""
    family = settings.models[generation.model].family
    first = STAGE_OF_FAMILY[family]
    strength = None if generation.image is None else generation.image.strength
    loras = tuple(Lora(lora.name, lora.weight) for lora in generation.loras if lora.weight)
    if generation.hires is not None:
        hires = generation.hires
        between: Literal["image", "latents"] = "image" if hires.latent_upscaler is None else "latents"
        stages: tuple[DenoiseStage, ...] = (
            DenoiseStage(first, generation.model, output=between, loras=loras),
            DenoiseStage(first, generation.model, strength=hires.strength, hires=hires, loras=loras),
        )
    elif generation.refiner is None or generation.switch_at is None:
        stages = (DenoiseStage(first, generation.model, strength=strength, loras=loras),)
    else:
        refining = STAGE_OF_FAMILY[settings.models[generation.refiner].family]
        stages = (
            DenoiseStage(
                first,
                generation.model,
                denoising_end=generation.switch_at,
                output="latents",
                strength=strength,
                loras=loras,
            ),
            DenoiseStage(refining, generation.refiner, denoising_start=generation.switch_at),
        )
    guided = generation.guidance_scale > 1  # without guidance there is nothing to be negative about
    return Plan(
        generation=generation,
        encoding=TextEncodingRequest(
            checkpoint=generation.model,
            prompt=generation.prompt,
            negative_prompt=generation.negative_prompt if guided else None,
            clip_skip=generation.clip_skip,
            prompt_2=generation.prompt_2,
            negative_prompt_2=generation.negative_prompt_2 if guided else None,
            steps=generation.taken_steps,
            skipped=generation.steps - generation.taken_steps,
            loras=loras,
        ),
        stages=stages,
        classify=generation.safety != "off",
    )
