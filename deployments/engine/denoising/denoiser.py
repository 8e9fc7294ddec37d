"""One step for the lanes of a batch: stack, UNet, guidance, update."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.nn.functional import pad

from deployments.engine.adapters.lora import AdaptedModel
from deployments.engine.attention import use_attention
from deployments.engine.batch import Batch
from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.compile.forwards import CompiledForwards
from deployments.engine.config import EngineSettings
from deployments.engine.denoising.batch_inputs import BatchLayout, BatchLayouts
from deployments.engine.denoising.guidance import composed, guided
from deployments.engine.denoising.regions import blended, shares_of
from deployments.engine.device import pinned_numbers
from deployments.engine.errors import InvalidRequest
from deployments.engine.lanes.lane import Lane, LaneConditioning
from deployments.engine.row_threads import RowThreads
from deployments.engine.tiling import seamless
from deployments.engine.types import Conditioning, DenoiseRequest, Pixels, PromptEmbedding
from deployments.engine.unet import UnetForward, UnetInputs
from deployments.engine.vae.autoencoder import Vae
from deployments.engine.vae.previews import PreviewMap


class Denoiser:
    """A checkpoint's UNet and VAE, ready to take steps for any mixture of lanes."""

    def __init__(
        self,
        weights: DenoiserWeights,
        previews: PreviewMap,
        settings: EngineSettings,
        row_threads: RowThreads,
        compiled: CompiledForwards | None = None,
        tiled: Callable[[int], bool] = lambda cells: False,
    ) -> None:
        """Set the UNet's attention. Runs in the thread that owns the device.

        Args:
            weights: of the checkpoint.
            previews: the map from latents to previews.
            settings: of the engine.
            row_threads: split a forward's rows on a CPU.
            compiled: compiled forwards of the UNet; None if nothing is compiled.
            tiled: whether the VAE takes an image of so many latent cells in tiles.
        """
        self.weights = weights
        unet, vae, placement = weights.unet, weights.vae, weights.placement
        # layers that come and go with a forward are there for one at a time
        whole = placement.policy in ("group_offload", "sequential_offload")
        self._row_threads = RowThreads(1) if whole else row_threads
        self._memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        use_attention(unet, settings.attention)
        # asked once: diffusers walks through all modules for either, which takes milliseconds
        self._device, self._dtype = placement.device, unet.dtype
        self.adapted = AdaptedModel(unet, "unet", self._device)
        self._forward = UnetForward(unet)
        self._compiled = compiled if placement.resident else None
        self.channels = int(vae.config.latent_channels)
        self.takes_hints = int(unet.config.in_channels) > self.channels
        self.vae = Vae.of(weights, tiled, settings.vae.tile)
        self._context_channels = int(unet.config.cross_attention_dim)
        self._pooled_channels = weights.pooled_channels
        self._guidance_channels: int | None = unet.config.time_cond_proj_dim
        self._layouts = BatchLayouts(self.adapted, self._device, self._dtype, self._guidance_channels)
        self._prediction_type = str(weights.scheduler_config.get("prediction_type", "epsilon"))
        betas = DDPMScheduler.from_config(weights.scheduler_config, clip_sample=False, thresholding=False)
        self._alphas_cumprod: list[float] = betas.alphas_cumprod.tolist()
        self._previews = previews

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def conditions(self, request: DenoiseRequest, text: Conditioning) -> list[LaneConditioning]:
        """The lane's texts on the device: the first, and one for each of the edits.

        A refiner takes the last text encoder's channels of an embedding that it shares with its base.
        Raises InvalidRequest if the shape of an embedding or a mask isn't right, or the checkpoint can't compose.
        """
        made: dict[tuple[int, ...], LaneConditioning] = {}  # what takes turns is there once
        _check_composition(request, text)
        shares = shares_of(request).to(self._device) if request.regions else None
        first = (text.positive, *text.composed), text.negative
        changes = [first, *(((edit.positive, *edit.composed), edit.negative) for edit in text.edits)]
        keys = [(*map(id, positives), id(negative)) for positives, negative in changes]
        for key, (positives, negative) in zip(keys, changes, strict=True):
            if key not in made:
                filled_up_to = text.tokens if text.filled_up else None
                made[key] = self._condition(request, positives, negative, text.weights, shares, filled_up_to)
        return [made[key] for key in keys]

    def _condition(
        self,
        request: DenoiseRequest,
        positives: Sequence[PromptEmbedding],
        negative: PromptEmbedding | None,
        weights: tuple[float, ...],
        shares: torch.Tensor | None,
        filled_up_to: int | None,
    ) -> LaneConditioning:
        if self._guidance_channels is not None:
            if len(positives) > 1 and shares is None:
                raise InvalidRequest(
                    "prompt has AND, which this checkpoint, distilled with guidance, can't do", "prompt"
                )
            negative = None  # the UNet itself makes of one row what guidance makes of two
        embeddings = [*positives] if negative is None else [*positives, negative]
        # only a negative prompt is replaced by zeros: an empty prompt is a prompt (as in diffusers' SDXL pipelines)
        zeroed = self.weights.force_zeros_for_empty_prompt and negative is not None
        zeroed = zeroed and embeddings[-1].empty
        states = [self._hidden_states(embedding) for embedding in embeddings]
        if zeroed:
            states[-1].zero_()
        mask: torch.Tensor | None = None
        if filled_up_to is not None:
            mask = torch.tensor([[position < len(one) for position in range(filled_up_to)] for one in states])
            mask = mask.to(self._device, self._dtype)
            states = [pad(one, (0, 0, 0, filled_up_to - len(one))) for one in states]
        hidden = torch.stack(states).to(self._device, self._dtype)
        if self._pooled_channels is None:
            return LaneConditioning(hidden, mask=mask, weights=weights, shares=shares)
        pooled = torch.stack([self._pooled(embedding) for embedding in embeddings])
        if zeroed:
            pooled[-1].zero_()
        family = self.weights.family
        time_ids = [family.size_condition(request, negative=row >= len(positives)) for row in range(len(embeddings))]
        return LaneConditioning(
            hidden,
            pooled.to(self._device, self._dtype),
            torch.tensor(time_ids, dtype=self._dtype, device=self._device),
            mask,
            weights,
            shares,
        )

    def step(self, batch: Batch[Lane]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one UNet forward over the bucket, guidance, and the samplers' update.

        Returns:
            Guided model outputs and the lanes' next latents, both (lanes, channels, height, width), float32.
        """
        self.weights.placement.bring_unet()
        layout = self._layouts.of(batch)
        outputs, unguided = self._predict(batch, layout)
        return outputs, self._update(batch.lanes, outputs, unguided)

    def _predict(self, batch: Batch[Lane], layout: BatchLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Guided model outputs, and the unguided ones: (lanes, channels, height, width), float32."""
        sample = self.model_inputs(batch.lanes)
        if layout.hints is not None:
            sample = torch.cat([sample, layout.hints], dim=1)
        sample = sample[layout.rows]
        inputs = UnetInputs(
            sample=sample.to(dtype=self._dtype, memory_format=self._memory_format),
            timesteps=pinned_numbers(layout.timesteps, self._device),
            hidden_states=layout.hidden_states,
            mask=layout.mask,
            guidance_embedding=layout.guidance_embedding,
            text_embeds=layout.text_embeds,
            time_ids=layout.time_ids,
        )
        output = self._output(layout, inputs).float()
        negative = output[layout.negative]
        positive = composed(negative, output[layout.positive], output, layout.compositions)
        negative, positive = blended(negative, positive, output, layout.blends)
        return guided(negative, positive, layout.guidance, batch.lanes), negative

    def _output(self, layout: BatchLayout, inputs: UnetInputs) -> torch.Tensor:
        """The UNet's output for each row of the bucket, by a compiled forward if there is one for the batch."""
        bucket = layout.bucket
        part = slice(0, self._row_threads.rows_of_part(bucket))
        tiling = layout.lanes[0].key.tiling
        plain = not (layout.adapters or layout.conditions or tiling)
        if self._compiled is not None and plain and not layout.lanes[0].key.pinned:
            output = self._compiled.call(
                self.weights.unet,
                inputs.rows(part),
                lambda compiled: self._row_threads.forward(lambda rows: compiled(inputs.rows(rows)), bucket),
            )
            if output is not None:
                return output

        contributions = [condition.contribution(inputs) for condition in layout.conditions]

        def forward(rows: slice) -> torch.Tensor:
            further: dict[str, Any] = {}
            for contribution in contributions:
                further |= contribution.arguments(rows)
            output: torch.Tensor = self._forward(*inputs.rows(rows).all, **further)
            return output

        with seamless(self.weights.unet, tiling), ExitStack() as hooks:
            hooks.enter_context(self.adapted.adapted(layout.adapters))
            for contribution in contributions:
                hooks.enter_context(contribution.hooked())
            return self._row_threads.forward(forward, bucket)

    def _update(self, lanes: Sequence[Lane], outputs: torch.Tensor, unguided: torch.Tensor) -> torch.Tensor:
        """The lanes' next latents (lanes, channels, height, width), float32: one fused sum for all samplers.

        Terms are added in each lane's own order, and missing ones are exact zeros, so that a lane's bits don't depend
        on the other lanes' samplers.
        """
        terms = [lane.update_terms(*of_lane) for lane, *of_lane in zip(lanes, outputs, unguided, strict=True)]
        absent = (0.0, torch.zeros_like(outputs[0]))
        # one list of terms for each position, a lane's after the other
        positions = list(zip_longest(*terms, fillvalue=absent))
        factors = pinned_numbers([[factor for factor, _ in position] for position in positions], self._device)
        total = torch.zeros_like(outputs)
        for of_position, position in zip(factors.view(len(positions), -1, 1, 1, 1), positions, strict=True):
            total = torch.addcmul(total, of_position, torch.stack([tensor for _, tensor in position]))
        return total

    def put_back(self, batch: Batch[Lane], latents: torch.Tensor) -> torch.Tensor:
        """The latents, with the parts that lanes keep of their images put back, as in diffusers' inpainting pipelines.

        Args:
            batch: of the step.
            latents: (lanes, channels, height, width), float32, after the step.
        """
        kept = self._layouts.of(batch).kept
        if kept is None:
            return latents
        levels = pinned_numbers([batch.lanes[index].current.kept for index in kept.lanes], self._device)
        of_image, of_noise = levels.view(-1, 2, 1, 1, 1).unbind(1)
        originals = of_image * kept.clean + of_noise * kept.noise
        blended = (1 - kept.mask) * originals + kept.mask * latents[kept.rows]
        return latents.index_copy(0, kept.rows, blended)

    def model_inputs(self, lanes: Sequence[Lane]) -> torch.Tensor:
        """Latents scaled for the model (`scale_model_input`): (lanes, channels, height, width), float32."""
        scales = pinned_numbers([lane.current.input_scale for lane in lanes], self._device)
        latents = torch.stack([lane.latents for lane in lanes])
        return latents * scales.view(-1, 1, 1, 1)

    def preview(self, timestep: float, model_input: torch.Tensor, output: torch.Tensor) -> Pixels:
        """A preview of the image that the model predicts at this step.

        The model input is variance preserving whatever the sampler, so the clean latents follow from alphas_cumprod at
        the timestep alone (DDPM, arXiv:2006.11239).

        Args:
            timestep: of the step.
            model_input: (channels, height, width), float32, of one lane.
            output: likewise, the guided model output.

        Returns:
            (height, width, 3), uint8.
        """
        alpha = self._alphas_cumprod[min(max(round(timestep), 0), len(self._alphas_cumprod) - 1)]
        if self._prediction_type == "v_prediction":
            clean = alpha**0.5 * model_input - (1 - alpha) ** 0.5 * output
        elif self._prediction_type == "sample":
            clean = output
        else:
            clean = (model_input - (1 - alpha) ** 0.5 * output) / max(alpha, 1e-6) ** 0.5
        return self._previews.render(clean)

    def forget(self, lane: Lane) -> None:
        """Drop what is kept of a lane that has ended."""
        self._layouts.forget(lane)

    def _hidden_states(self, embedding: PromptEmbedding) -> torch.Tensor:
        hidden = torch.from_numpy(embedding.hidden_states.copy())
        is_shared = self.weights.family.refines and hidden.shape[-1] > self._context_channels
        if hidden.ndim != 2 or not (is_shared or hidden.shape[1] == self._context_channels):
            raise InvalidRequest(
                f"a text embedding of shape {tuple(hidden.shape)} is not one for this checkpoint, whose UNet expects "
                f"(tokens, {self._context_channels})"
            )
        return hidden[:, -self._context_channels :]

    def _pooled(self, embedding: PromptEmbedding) -> torch.Tensor:
        if embedding.pooled is None or embedding.pooled.shape != (self._pooled_channels,):
            raise InvalidRequest(f"an SDXL checkpoint expects a pooled embedding of ({self._pooled_channels},)")
        return torch.from_numpy(embedding.pooled.copy())


def _check_composition(request: DenoiseRequest, text: Conditioning) -> None:
    """Raise InvalidRequest if the texts aren't those of so many prompts, or there is nothing to compose them by."""
    count = 1 + len(text.composed)
    if not request.composed_prompts == count == len(text.weights):
        raise InvalidRequest(
            f"the texts are of {count} prompts with {len(text.weights)} weights, the request's of "
            f"{request.composed_prompts}"
        )
    if request.regions:
        if count != 1 + len(request.regions):
            raise InvalidRequest(
                f"the texts are of {count} prompts, there are {len(request.regions)} regions", "regions"
            )
        return
    if count > 1 and (text.negative is None or (request.guidance_start, request.guidance_end) != (0.0, 1.0)):
        raise InvalidRequest("prompt has AND, which needs guidance at every step", "prompt")
