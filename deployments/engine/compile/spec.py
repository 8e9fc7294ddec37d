"""What a graph is compiled for: an architecture, types, and sizes. The name of its file follows from it.

Weights are no part of it: all checkpoints of an architecture share what was compiled for one.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeAlias

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel

from deployments.engine.compile.unet_step import TERMS, StepInputs, UnetStep
from deployments.engine.compile.vae_decode import DecodeInputs, VaeDecode
from deployments.engine.config import Quantize
from deployments.engine.quantization import quantize, quantized_as
from deployments.engine.unet import UnetForward, UnetInputs

Inputs: TypeAlias = UnetInputs | StepInputs | DecodeInputs
Model: TypeAlias = UNet2DConditionModel | AutoencoderKL


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """graph: a UNet's forward, a whole step with it, or a VAE's decode. model: its configuration as JSON, keys sorted.

    device: "cpu" or "cuda". dtype: torch's name of it. rows, height, width: of the latents. tokens: of the text.
    masked: whether texts are filled up. quantize: the UNet's. pooled_channels, time_ids: as in DenoiserWeights.
    """

    graph: Literal["forward", "step", "decode"]
    model: str
    device: str
    dtype: str
    channels_last: bool
    rows: int
    height: int
    width: int
    tokens: int = 0
    masked: bool = False
    quantize: Quantize = "none"
    pooled_channels: int | None = None
    time_ids: int = 0

    @classmethod
    def of(cls, model: Model, inputs: Inputs, *, channels_last: bool) -> Self:
        """What a forward, a step or a decode with such inputs needs."""
        latents = inputs.tensors[0]
        typed = latents if isinstance(inputs, DecodeInputs) else inputs.hidden_states
        given: dict[str, Any] = {
            "model": json.dumps(_architecture(model.config), sort_keys=True),
            "device": typed.device.type,
            "dtype": str(typed.dtype).removeprefix("torch."),
            "channels_last": channels_last,
            "rows": latents.shape[-4],
            "height": latents.shape[-2],
            "width": latents.shape[-1],
        }
        if isinstance(inputs, DecodeInputs):
            return cls(graph="decode", **given)
        return cls(
            graph="step" if isinstance(inputs, StepInputs) else "forward",
            **given,
            tokens=inputs.hidden_states.shape[1],
            masked=inputs.mask is not None,
            quantize=quantized_as(model),
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
        size = f"{self.rows} x {8 * self.width} x {8 * self.height}"
        if self.graph == "decode":
            return f"decode, {size}"
        return f"{'whole step, ' if self.graph == 'step' else ''}{size}, {self.tokens} tokens"

    @property
    def weights(self) -> int:
        """Bytes of the model's."""
        return sum(tensor.nbytes for tensor in self._described().state_dict().values())

    def new_model(self) -> Any:
        """A UNet or a VAE of this architecture, type, device and memory format. Its weights are whatever was there."""
        model = self._described().to_empty(device=self.device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model.requires_grad_(False).eval()

    def _described(self) -> Any:
        """The model without memory."""
        model_class: Any = AutoencoderKL if self.graph == "decode" else UNet2DConditionModel
        with init_empty_weights():
            model = model_class.from_config(json.loads(self.model))
        model = model.to(dtype=getattr(torch, self.dtype))
        quantize(model, self.quantize)
        return model

    def new_forward(self, model: Any) -> UnetForward | UnetStep | VaeDecode:
        """What is compiled, around a model of this architecture."""
        if self.graph == "decode":
            return VaeDecode(model)
        return UnetForward(model) if self.graph == "forward" else UnetStep(model, channels_last=self.channels_last)

    def new_inputs(self, model: Any) -> Inputs:
        """Random ones, as the engine lays them out."""
        config: Any = model.config
        dtype = model.dtype

        def some(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(self.rows, *shape, device=self.device, dtype=dtype)

        if self.graph == "decode":
            return DecodeInputs(some(int(config.latent_channels), self.height, self.width))
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
