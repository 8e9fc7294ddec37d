"""The plan of a job: its stages in order, and their requests. Pure.

jobs/generation_executor.py and jobs/upscale_executor.py carry plans out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from deployments.config import stage_of
from deployments.engine.checkpoints.spec import AddedCheckpoint
from deployments.engine.parameters import DenoisingParameters
from deployments.engine.prompts.syntax import Lora, composed_prompts
from deployments.engine.samplers.registry import second_pass_strength
from deployments.engine.types import (
    DenoiseRequest,
    DenoiseResult,
    MaskedContent,
    Pixels,
    Priority,
    TextEncodingRequest,
)
from serve_app.config.settings import Settings
from serve_app.planning.upscale import UpscalePlan, plan_upscale
from serve_app.schemas.generation_request import Fill, LoraRequest
from serve_app.schemas.resolved import HiresInput, ResolvedGeneration, ResolvedUpscale, read_operation

PRIORITIES = {"batch": Priority.BATCH, "normal": Priority.NORMAL, "interactive": Priority.INTERACTIVE}

# what the engine has to do for a fill; colours are filled in before
_MASKED_CONTENT: Mapping[Fill, MaskedContent] = {
    "original": "image",
    "blur": "image",
    "noise": "noise",
    "nothing": "nothing",
}

# previews of one stage of one image: enough to watch, few enough not to cost
_PREVIEWS = 10


@dataclass(frozen=True, slots=True)
class DenoiseStage(DenoisingParameters):
    """One denoising stage of every image; its parameters are those of the first one, others as in DenoiseRequest.

    Attributes:
        stage: its key in the settings' `stages`.
        hires: set for the generation's second pass.
        detail, part: which of the generation's details it draws over, and which part that was found for it; None for
            the stages of the whole image.
        loras: of its UNet; none for a refiner.
        region_loras: of its UNet for each region's prompt; empty if all have `loras`.
        composed_prompts: as in DenoiseRequest, regions included.
        checkpoint, checkpoint_hash, added: as in DenoiseRequest.
    """

    stage: str
    checkpoint: str
    denoising_start: float = 0.0
    denoising_end: float = 1.0
    output: Literal["image", "latents"] = "image"
    strength: float | None = None
    hires: HiresInput | None = None
    detail: int | None = None
    part: int = 0
    loras: tuple[Lora, ...] = ()
    region_loras: tuple[tuple[Lora, ...], ...] = ()
    composed_prompts: int = 1
    checkpoint_hash: str | None = None
    added: AddedCheckpoint | None = None

    @property
    def refines(self) -> bool:
        """Whether it is a refiner's."""
        return self.denoising_start > 0

    @property
    def expected(self) -> bool:
        """Whether each image is expected to have it: of a detail one part, until it is known how many there are."""
        return self.part == 0

    @property
    def rows(self) -> float:
        """UNet rows of a step, on average."""
        return self.composed_prompts + (self.guidance_end - self.guidance_start if self.guidance_scale > 1 else 0.0)

    @property
    def share(self) -> float:
        """The part of the schedule's steps that the stage takes, 0..1."""
        start = self.denoising_start if self.strength is None else 1 - self.strength
        return max(1 / self.steps, self.denoising_end - start)  # a step at least


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a generation: one encoding, and the stages of each image."""

    operation: ResolvedGeneration
    encoding: TextEncodingRequest
    stages: tuple[DenoiseStage, ...]

    @property
    def hires_encoding(self) -> TextEncodingRequest | None:
        """The encoding for a second pass, over whose steps a prompt may change too; None without one."""
        hires = self.operation.hires
        if hires is None:
            return None
        second = self.stages[1]
        own = None if hires.loras is None else text_loras(hires.loras)
        of_regions = _of_regions(self.operation, hires, text_loras)
        taken, texts = hires.taken_steps, hires.texts(self.encoding.negative_prompt is not None)
        return replace(
            self.encoding,
            **texts,
            steps=taken,
            skipped=hires.steps - taken,
            before=self.operation.taken_steps,
            checkpoint=second.checkpoint,
            spec=None if second.added is None else second.added.spec,
            loras=self.encoding.loras if own is None else own,
            region_loras=of_regions,
        )

    def detail_encoding(self, number: int) -> TextEncodingRequest:
        """The encoding for a detail, over whose steps a prompt may change too."""
        generation, detail = self.operation, self.operation.details[number]
        guided = detail.guidance_scale > 1
        texts = generation.texts() | detail.texts(guided)
        if not guided:
            texts |= _UNGUIDED
        return replace(
            self.encoding,
            **texts,
            regions=(),
            region_loras=(),
            references=(),
            steps=detail.taken_steps,
            skipped=detail.steps - detail.taken_steps,
            loras=self.encoding.loras if detail.loras is None else text_loras(detail.loras),
        )

    @property
    def encodings(self) -> tuple[TextEncodingRequest, ...]:
        """Of all passes."""
        second = self.hires_encoding
        details = map(self.detail_encoding, range(len(self.operation.details)))
        return (self.encoding, *(() if second is None else (second,)), *details)

    @property
    def whole_stages(self) -> tuple[DenoiseStage, ...]:
        """The stages of the whole image, which come first."""
        return tuple(stage for stage in self.stages if stage.detail is None)

    def lane(
        self,
        stage: DenoiseStage,
        *,
        lane_id: str = "",
        seed: int | None = None,
        variation_seed: int | None = None,
        timeout_s: float | None = None,
        tenant: str = "",
        waited_s: float = 0.0,
        before: DenoiseResult | None = None,
        image: Pixels | None = None,
        mask: Pixels | None = None,
        steering: Mapping[str, Any] = MappingProxyType({}),
        state_every: int = 0,
    ) -> DenoiseRequest:
        """The request to `stage` for one image; arguments that aren't listed as in DenoiseRequest.

        A second pass draws its noise anew from the seed, as if it were started by hand; a refiner goes on with the
        random numbers of the stage before.

        Args:
            stage: of the plan.
            seed, variation_seed: of the image; None for the first image's.
            timeout_s: seconds that are left; None for the operation's.
            before: the result of the stage before; None for the first stage.
            image: (height, width, 3), uint8, what the stage begins with unless `before` hands latents over.
            steering: fields of DenoiseRequest that conditionings read, as SteeringPictures.of_pass returns them.
        """
        operation = self.operation
        begun = None if stage.detail is not None else operation.image
        latents = None if before is None else before.latents
        enlarge = None if stage.hires is None else stage.hires.latent_upscaler
        if begun is not None and begun.fit == "latent" and not stage.denoising_start:
            enlarge = "latent"
        own = {"seed": seed, "variation_seed": variation_seed}
        return DenoiseRequest(
            **stage.parameters() | {name: value for name, value in own.items() if value is not None},
            lane_id=lane_id,
            checkpoint=stage.checkpoint,
            denoising_start=stage.denoising_start,
            denoising_end=stage.denoising_end,
            strength=stage.strength,
            loras=stage.loras,
            composed_prompts=stage.composed_prompts,
            base_weight=operation.base_weight if stage.detail is None else 0.0,
            vae=operation.vae,
            checkpoint_hash=stage.checkpoint_hash,
            added=stage.added,
            **self._steering(stage, steering),
            image=image if latents is None or mask is not None else None,
            mask=mask,
            latents=latents,
            masked_content="image" if begun is None else _MASKED_CONTENT[begun.fill],
            enlarge=enlarge,
            generator_state=None if before is None or stage.hires is not None else before.generator_state,
            output=stage.output,
            reproducible=operation.reproducible,
            priority=PRIORITIES[operation.priority],
            tenant=tenant,
            waited_s=waited_s,
            timeout_s=operation.timeout_s if timeout_s is None else timeout_s,
            state_every=state_every,
            preview_every=-(-stage.steps // _PREVIEWS) if operation.preview and stage.detail is None else 0,
        )

    def _steering(self, stage: DenoiseStage, steering: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields of DenoiseRequest, with the regions' LoRAs in this stage."""
        regions = steering.get("regions", ())
        if not regions or not stage.region_loras:
            return steering
        own = zip(regions, stage.region_loras, strict=True)
        return {**steering, "regions": tuple(replace(region, loras=loras) for region, loras in own)}


OperationPlan = Plan | UpscalePlan

# parameters that a refiner hasn't
_OF_BASES = {f"freeu_{factor}": 1.0 for factor in ("s1", "s2", "b1", "b2")}

# texts of a pass without guidance, for which there is nothing to be negative about
_UNGUIDED = {"negative_prompt": None, "negative_prompt_2": None}


def plan_generation(generation: ResolvedGeneration, settings: Settings) -> Plan:
    """The plan of a generation. Raises KeyError for a model that the catalogue no longer has."""
    texts = generation.texts()
    if generation.guidance_scale <= 1:
        texts |= _UNGUIDED
    stages = _stages(generation, settings)
    return Plan(
        operation=generation,
        encoding=TextEncodingRequest(
            checkpoint=stages[0].checkpoint,
            spec=None if stages[0].added is None else stages[0].added.spec,
            **texts,
            regions=tuple(region.prompt for region in generation.regions),
            steps=generation.taken_steps,
            skipped=generation.steps - generation.taken_steps,
            loras=text_loras(generation.loras),
            region_loras=_of_regions(generation, None, text_loras),
        ),
        stages=stages,
    )


def read_plan(stored: Mapping[str, Any], settings: Settings) -> OperationPlan:
    """The plan of a job's stored request.

    Raises:
        ValueError: it isn't a resolved request (pydantic's ValidationError).
        KeyError: the settings no longer have its model.
    """
    operation = read_operation(stored)
    if isinstance(operation, ResolvedUpscale):
        return plan_upscale(operation, settings.upscalers)
    return plan_generation(operation, settings)


def text_loras(loras: Sequence[LoraRequest]) -> tuple[Lora, ...]:
    """What the text encoders apply."""
    return tuple(Lora(lora.name, text) for lora in loras for _, text in [lora.weights] if text)


def _unet_loras(loras: Sequence[LoraRequest]) -> tuple[Lora, ...]:
    """What the UNet applies. One of weight 0, which changes texts alone, is there too: its file has to be told."""
    return tuple(Lora(lora.name, lora.weight) for lora in loras if any(lora.weights))


def _of_regions(
    generation: ResolvedGeneration,
    hires: HiresInput | None,
    applied: Callable[[Sequence[LoraRequest]], tuple[Lora, ...]],
) -> tuple[tuple[Lora, ...], ...]:
    """What is `applied` for each region's prompt: a pass's LoRAs, with the region's own in their places or besides.

    Empty if no region has any. A second pass (`hires`) by another model has none of them: they are for the first's.
    """
    regions = generation.regions
    if not any(region.loras for region in regions) or (hires is not None and hires.model is not None):
        return ()
    of_pass = generation.loras if hires is None or hires.loras is None else hires.loras
    of_all = {lora.name: lora for lora in of_pass}
    return tuple(applied([*(of_all | {lora.name: lora for lora in region.loras}).values()]) for region in regions)


def _stages(generation: ResolvedGeneration, settings: Settings) -> tuple[DenoiseStage, ...]:
    hires, switch_at = generation.hires, generation.switch_at
    first = DenoiseStage(
        **_of_model(generation.model, generation, settings),
        strength=None if generation.image is None else generation.image.strength,
        loras=_unet_loras(generation.loras),
        region_loras=_of_regions(generation, None, _unet_loras),
        composed_prompts=composed_prompts(generation.prompt) + len(generation.regions),
        **generation.parameters(),
    )
    details = _detail_stages(generation, first)
    if hires is not None:
        of_second: dict[str, Any] = hires.model_dump(include={"width", "height", "steps", "sampler"})
        if hires.loras is not None:
            of_second["loras"] = _unet_loras(hires.loras)
        of_second["region_loras"] = _of_regions(generation, hires, _unet_loras)
        if hires.prompt is not None:
            of_second["composed_prompts"] = composed_prompts(hires.prompt) + len(generation.regions)
        if hires.model is not None:
            of_second |= _of_model(hires.model, generation, settings)
        of_second["strength"] = second_pass_strength(hires.sampler, hires.steps, hires.strength)
        return (
            replace(first, output="image" if hires.latent_upscaler is None else "latents"),
            replace(first, hires=hires, **of_second),
            *details,
        )
    if generation.refiner is None or switch_at is None:
        return (first, *details)
    refiner = DenoiseStage(
        **_of_model(generation.refiner, generation, settings),
        denoising_start=switch_at,
        composed_prompts=first.composed_prompts,
        **generation.parameters() | _OF_BASES,
    )
    return replace(first, denoising_end=switch_at, output="latents"), refiner, *details


def _detail_stages(generation: ResolvedGeneration, first: DenoiseStage) -> Iterator[DenoiseStage]:
    """A stage for each part that details may find; drawn as the generation's `first` stage, from its picture."""
    for number, detail in enumerate(generation.details):
        own: dict[str, Any] = detail.model_dump(
            include={"width", "height", "steps", "sampler", "guidance_scale", "strength"}
        )
        own["composed_prompts"] = composed_prompts(generation.prompt if detail.prompt is None else detail.prompt)
        if detail.loras is not None:
            own["loras"] = _unet_loras(detail.loras)
        # of the whole image alone: its regions, what it goes on with at its other side, and the shape of its noise
        own |= {"region_loras": (), "tiling": False, "variation_strength": 0.0, "noise_width": 0, "noise_height": 0}
        for part in range(detail.lanes):
            yield replace(first, detail=number, part=part, **own)


def _of_model(name: str, generation: ResolvedGeneration, settings: Settings) -> dict[str, Any]:
    """The fields of a DenoiseStage that its model decides."""
    model = settings.models[name]
    return {
        "stage": stage_of(model.family),
        "checkpoint": model.name_in_stages(name),
        "added": model.added,
        "checkpoint_hash": generation.pinned.get(name),
    }
