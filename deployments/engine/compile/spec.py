"""What a graph is compiled for: an architecture, types, and sizes. The name of its folder follows from it.

Weights are no part of it: all checkpoints of an architecture share what was compiled for one.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel

from deployments.engine.quantization import is_quantized, quantize
from deployments.engine.unet import UnetInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """A UNet's forward at one size.

    Attributes:
        model: the UNet's configuration as JSON, keys sorted.
        device: "cpu" or "cuda".
        dtype: torch's name of the weights' type.
        channels_last: memory format of the weights and of the sample.
        rows: of the batch.
        height: of the latents, in cells.
        width: of the latents, in cells.
        tokens: of the text.
        masked: whether texts are padded, with a mask.
        quantized: whether the UNet is.
        pooled_channels: of the pooled embedding that SDXL's UNets take; None for none.
        time_ids: numbers that SDXL's UNets take of an image's size and crop; 0 for none.
    """

    model: str
    device: str
    dtype: str
    channels_last: bool
    rows: int
    height: int
    width: int
    tokens: int
    masked: bool = False
    quantized: bool = False
    pooled_channels: int | None = None
    time_ids: int = 0

    @classmethod
    def of(cls, unet: UNet2DConditionModel, inputs: UnetInputs, *, channels_last: bool) -> Self:
        """The spec of the graph that such inputs need."""
        states = inputs.hidden_states
        return cls(
            model=json.dumps(_architecture(unet.config), sort_keys=True),
            device=states.device.type,
            dtype=str(states.dtype).removeprefix("torch."),
            channels_last=channels_last,
            rows=inputs.sample.shape[0],
            height=inputs.sample.shape[2],
            width=inputs.sample.shape[3],
            tokens=states.shape[1],
            masked=inputs.mask is not None,
            quantized=is_quantized(unet),
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
        """Of the graph's folder: a hash of this, of torch's version, and of the processor or GPU."""
        where = [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability()]
        if self.device == "cuda":
            where += [torch.cuda.get_device_name(), str(torch.version.cuda)]
        return hashlib.sha256("\n".join([self.json, *where]).encode()).hexdigest()[:32]

    def __str__(self) -> str:
        """For people: rows, and pixels of the image."""
        return f"{self.rows} x {8 * self.width} x {8 * self.height}, {self.tokens} tokens"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the UNet's weights."""
        return sum(tensor.nbytes for tensor in self._empty_unet().state_dict().values())

    def new_unet(self) -> Any:
        """A UNet of this architecture, type, device and memory format. Its weights are whatever was in the memory."""
        unet = self._empty_unet().to_empty(device=self.device)
        if self.channels_last:
            unet = unet.to(memory_format=torch.channels_last)
        return unet.requires_grad_(False).eval()

    def _empty_unet(self) -> Any:
        """The UNet on the meta device."""
        with init_empty_weights():
            unet = UNet2DConditionModel.from_config(json.loads(self.model))
        unet = unet.to(dtype=getattr(torch, self.dtype))
        if self.quantized:
            quantize(unet)
        return unet

    def new_inputs(self, unet: Any) -> UnetInputs:
        """Random inputs, laid out in memory as the engine's are."""
        config: Any = unet.config

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(self.rows, *shape, device=self.device, dtype=unet.dtype)

        sample = random(int(config.in_channels), self.height, self.width)
        return UnetInputs(
            sample.contiguous(memory_format=torch.channels_last) if self.channels_last else sample,
            torch.full((self.rows,), 500.0, device=self.device, dtype=torch.float32),
            hidden_states=random(self.tokens, int(config.cross_attention_dim)),
            mask=torch.ones(self.rows, self.tokens, device=self.device, dtype=unet.dtype) if self.masked else None,
            guidance_embedding=None if config.time_cond_proj_dim is None else random(int(config.time_cond_proj_dim)),
            text_embeds=None if self.pooled_channels is None else random(self.pooled_channels),
            time_ids=random(self.time_ids) if self.time_ids else None,
        )


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that the forward depends on: without its origin, and the size it was trained at."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "sample_size"}
