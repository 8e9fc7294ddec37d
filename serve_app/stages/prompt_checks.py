"""What only a stage can say of a request, asked before it becomes a job."""

from dataclasses import dataclass

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import surely_fits
from serve_app.config.settings import Settings
from serve_app.planning.plan import plan
from serve_app.schemas.resolved_generation import ResolvedGeneration
from serve_app.stages.client import StageCalls


@dataclass(frozen=True, slots=True)
class StageChecks:
    """Refusals that the settings alone don't tell."""

    settings: Settings
    calls: StageCalls

    async def schedule(self, generation: ResolvedGeneration) -> None:
        """Raise InvalidRequest where a picture's strength begins after its refiner's switch: only the sampler knows.

        A strength leaves out steps by their number, a switch by their noise; where steps lie unevenly (Karras), no
        fraction tells one from the other.
        """
        if generation.image is None or generation.switch_at is None:
            return
        made = plan(generation, self.settings)
        base = made.stages[0]
        lane = made.denoise(base, lane_id="", seed=generation.seed, timeout_s=generation.timeout_s, given=None)
        try:
            await self.calls.check_schedule(base.stage, lane)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"refiner.switch_at is {generation.switch_at:g}: with strength {generation.image.strength:g} "
                f"{generation.model} gets no step of {generation.sampler} before it ({error.message})",
                "refiner.switch_at",
            ) from None

    async def texts(self, generation: ResolvedGeneration) -> None:
        """Raise InvalidRequest for texts that only the text encoder can refuse: it alone counts tokens."""
        encoder = self.settings.stages.text_encoder
        short = all(surely_fits(prompt, encoder.max_chunks) for prompt in generation.prompts)
        if short and not encoder.embeddings and not generation.clip_skip:
            return
        made = plan(generation, self.settings)
        for encoding in (made.encoding, made.hires_encoding):
            if encoding is not None:
                await self.calls.check_texts(encoding)
