"""What a graph is compiled for: an architecture, types, and sizes. The name of its file follows from it.

Weights are no part of it: all checkpoints of an architecture share what was compiled for one.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel

from deployments.engine.quantization import quantize, quantized_as
from deployments.engine.settings import Quantize
from deployments.engine.unet_inputs import UnetForward, UnetInputs
from deployments.engine.unet_step import TERMS, StepInputs, UnetStep


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """graph: a UNet's forward, or a whole step. unet: its configuration, JSON with sorted keys.

    device: "cpu" or "cuda". dtype: torch's name of it. rows, height, width, tokens: of the sample and the text.
    masked: whether texts are filled up. quantize: the UNet's. pooled_channels, time_ids: as in DenoiserWeights.
    """

    graph: Literal["forward", "step"]
    unet: str
    device: str
    dtype: str
    channels_last: bool
    rows: int
    height: int
    width: int
    tokens: int
    masked: bool
    quantize: Quantize
    pooled_channels: int | None
    time_ids: int

    @classmethod
    def of(cls, unet: UNet2DConditionModel, inputs: UnetInputs | StepInputs, *, channels_last: bool) -> Self:
        """What a forward, or a step, with such inputs needs."""
        rows, _, height, width = inputs.size
        return cls(
            graph="step" if isinstance(inputs, StepInputs) else "forward",
            unet=json.dumps(_architecture(unet.config), sort_keys=True),
            device=inputs.hidden_states.device.type,
            dtype=str(inputs.hidden_states.dtype).removeprefix("torch."),
            channels_last=channels_last,
            rows=rows,
            height=height,
            width=width,
            tokens=inputs.hidden_states.shape[1],
            masked=inputs.mask is not None,
            quantize=quantized_as(unet),
            pooled_channels=None if inputs.text_embeds is None else inputs.text_embeds.shape[1],
            time_ids=0 if inputs.time_ids is None else inputs.time_ids.shape[1],
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `json` wrote."""
        return cls(**json.loads(text))

    @property
    def json(self) -> str:
        """On one line, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def name(self) -> str:
        """Of the folder that the compiled forward is in: of this, of torch's version and of the processor."""
        where = [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability()]
        if self.device == "cuda":
            where += [torch.cuda.get_device_name(), str(torch.version.cuda)]
        return hashlib.sha256("\n".join([self.json, *where]).encode()).hexdigest()[:32]

    def __str__(self) -> str:
        """For people: rows, and pixels of the image."""
        what = "whole step, " if self.graph == "step" else ""
        return f"{what}{self.rows} x {8 * self.width} x {8 * self.height}, {self.tokens} tokens"

    def new_unet(self) -> UNet2DConditionModel:
        """A UNet of this architecture, type, device and memory format. Its weights are whatever was there."""
        with init_empty_weights():
            unet = UNet2DConditionModel.from_config(json.loads(self.unet))
        unet = unet.to(dtype=getattr(torch, self.dtype))
        quantize(unet, self.quantize)
        unet = unet.to_empty(device=self.device)
        if self.channels_last:
            unet = unet.to(memory_format=torch.channels_last)
        return unet.requires_grad_(False).eval()

    def new_forward(self, unet: UNet2DConditionModel) -> UnetForward | UnetStep:
        """The UNet's forward, or a step with it, as it is compiled."""
        return UnetForward(unet) if self.graph == "forward" else UnetStep(unet, channels_last=self.channels_last)

    def new_inputs(self, unet: UNet2DConditionModel) -> UnetInputs | StepInputs:
        """Random ones, as a step's are laid out."""
        config: Any = unet.config
        dtype = unet.dtype

        def some(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(self.rows, *shape, device=self.device, dtype=dtype)

        conditions: dict[str, Any] = {
            "hidden_states": some(self.tokens, int(config.cross_attention_dim)),
            "mask": torch.ones(self.rows, self.tokens, device=self.device, dtype=dtype) if self.masked else None,
            "guidance_embedding": None if config.time_cond_proj_dim is None else some(int(config.time_cond_proj_dim)),
            "text_embeds": None if self.pooled_channels is None else some(self.pooled_channels),
            "time_ids": some(self.time_ids) if self.time_ids else None,
        }
        if self.graph == "forward":
            sample = some(int(config.in_channels), self.height, self.width)
            sample = sample.contiguous(memory_format=torch.channels_last) if self.channels_last else sample
            return UnetInputs(sample, torch.full((self.rows,), 500.0, device=self.device), **conditions)
        channels, hints = int(config.out_channels), int(config.in_channels) - int(config.out_channels)
        lane = torch.arange(self.rows, device=self.device)
        terms = torch.randn(TERMS, self.rows, channels, self.height, self.width, device=self.device)
        numbers = torch.ones(TERMS + 5, self.rows, device=self.device)
        numbers[-1] = 500.0
        return StepInputs(
            terms=terms,
            numbers=numbers,
            indices=torch.stack([lane, lane, lane]),
            hints=some(hints, self.height, self.width, dtype=torch.float32) if hints else None,
            **conditions,
        )


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing of the forward: where it came from, and the size it was trained at."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "sample_size"}
