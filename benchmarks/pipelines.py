"""Plain diffusers pipelines over weights that are loaded already: what the engine is compared with.

Text encoders are left out: every contender gets the same embeddings.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from benchmarks.real_architectures import pooled_channels, random_architecture, random_denoiser
from benchmarks.workload import Array, Job, Workload, random_conditioning, read_conditioning
from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors, DenoiserWeights, ModelTensors
from deployments.engine.checkpoints.loader import describe_denoiser, load_denoiser, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import DeviceSettings
from deployments.engine.device import open_device
from deployments.engine.memory.footprint import Describe
from deployments.engine.residency.host_cache import Reader
from deployments.engine.samplers.registry import SAMPLERS, split
from deployments.engine.types import Conditioning

# what a diffusers user says for the schedule at the end of a sampler's name
_SCHEDULES: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "trailing": {"timestep_spacing": "trailing"},
}
_NO_FILE = Path("random weights")


def load_for(workload: Workload, device: torch.device, dtype: torch.dtype) -> DenoiserWeights:
    """The workload's weights on a device."""
    load = random_denoiser if workload.random_weights else load_denoiser
    return load(workload.spec, device, dtype)


def reader_of(workload: Workload) -> Reader:
    """How an engine on the workload's device gets its weights; random ones are drawn there.

    In the host's memory, as files are: what a policy leaves there isn't on the device for the sake of a benchmark.
    """
    if not workload.random_weights:
        return read_denoiser
    device = open_device(DeviceSettings(device=workload.device, dtype=workload.dtype, cpu_threads=workload.cpu_threads))
    device.row_threads.close()

    def read(spec: CheckpointSpec) -> DenoiserTensors:
        weights = random_denoiser(spec, device.torch_device, device.dtype)
        for model in (weights.unet, weights.vae):
            torch.nn.Module.to(model, "cpu")
        return tensors_of(weights)

    return read


def tensors_of(weights: DenoiserWeights) -> DenoiserTensors:
    """The other way round: what an engine would have read to make these."""
    unet, vae = weights.unet, weights.vae
    return DenoiserTensors(
        unet=ModelTensors(unet.config, _NO_FILE, unet.state_dict(), _NO_FILE),
        vae=ModelTensors(vae.config, _NO_FILE, vae.state_dict(), _NO_FILE),
        **weights.facts,
    )


def describe_of(workload: Workload) -> Describe:
    """What says beforehand what the loader will load."""
    return random_architecture if workload.random_weights else describe_denoiser


def conditioning_of(job: Job) -> Conditioning:
    """The embeddings that a job's contender denoises with."""
    workload = job.workload
    guided = workload.rows == 2
    if job.embeddings is not None:
        return read_conditioning(Path(job.embeddings), guided)
    unet = describe_of(workload)(workload.spec).unet
    return random_conditioning(unet["cross_attention_dim"], pooled_channels(unet, workload.spec.family), guided)


def pipeline_over(weights: DenoiserWeights, sampler: str) -> Any:
    """The family's text-to-image pipeline (for a refiner, image-to-image) with the sampler's scheduler."""
    parts: dict[str, Any] = {
        "vae": weights.vae,
        "unet": weights.unet,
        "scheduler": scheduler_for(weights, sampler),
        "text_encoder": None,
        "tokenizer": None,
    }
    if weights.family.pipeline == "StableDiffusionPipeline":
        pipeline: Any = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        parts |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
        parts["force_zeros_for_empty_prompt"] = weights.force_zeros_for_empty_prompt
        if weights.family.refines:
            pipeline = StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
        else:
            pipeline = StableDiffusionXLPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scheduler_for(weights: DenoiserWeights, sampler: str) -> Any:
    """The diffusers scheduler of a canonical sampler name, made as a diffusers user makes it.

    The published SD configurations state what the schedulers' own defaults, meant for pixels, get wrong; so does this
    where a checkpoint's is silent.
    """
    name, schedule = split(sampler)
    chosen = SAMPLERS[name]
    stated = {"clip_sample": False, "skip_prk_steps": True} | weights.scheduler_config
    changes = {**chosen.overrides, **(_SCHEDULES[schedule] if schedule else {})}
    return getattr(diffusers, chosen.scheduler).from_config(stated, **changes)


def embedding_arguments(weights: DenoiserWeights, conditioning: Conditioning, images: int) -> dict[str, Any]:
    """prompt_embeds and what goes with them, once for each image; a refiner's are the last channels."""
    unet: Any = weights.unet
    arguments: dict[str, Any] = {}

    def repeated(array: Array) -> torch.Tensor:
        return torch.from_numpy(array.copy()).to(unet.device, unet.dtype).expand(images, *array.shape)

    for prefix, embedding in (("", conditioning.positive), ("negative_", conditioning.negative)):
        if embedding is None:
            continue
        hidden = embedding.hidden_states[:, -unet.config.cross_attention_dim :]
        arguments[f"{prefix}prompt_embeds"] = repeated(hidden)
        if embedding.pooled is not None and weights.family.time_ids:
            arguments[f"{prefix}pooled_prompt_embeds"] = repeated(embedding.pooled)
    return arguments


def generators(seeds: range) -> list[torch.Generator]:
    """One CPU generator an image, as the engine has."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
