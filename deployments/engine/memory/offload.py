"""Offloading: weights stay in the host's memory and are copied to the device while they are needed.

Whole models for their phase, a UNet's layers for their forward (diffusers' group offloading), or single modules
(accelerate's hooks). Weights are never written on the device, so leaving it copies nothing.
"""

from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from accelerate import cpu_offload
from torch.nn import Module, ModuleList

from deployments.engine.config import MemoryPolicy

_BLOCKS = ("down_blocks", "mid_block", "up_blocks")
_MOST_BLOCKS = 16  # of a UNet's way down or up


class OffloadedModel:
    """A model on the host whose weights are on the device between `bring` and `leave`.

    For CUDA they are pinned; copying overlaps with computing, and each part of the model waits for its own weights.
    """

    def __init__(self, model: Module, device: torch.device) -> None:
        """`model` must be on the host."""
        self._device = device
        self._parts = [_Part(part, device) for part in _parts(model)]

    def bring(self) -> None:
        """Begin to copy the weights to the device; forwards may follow at once."""
        for part in self._parts:
            part.make_room()
        if self._device.type != "cuda":
            for part in self._parts:
                part.copy()
            return
        copying = torch.cuda.Stream(self._device)
        # the room may still be read by what was launched when it was something else
        copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(copying):
            for part in self._parts:
                part.copy()
                part.await_before_forward(copying.record_event())

    def await_whole(self) -> None:
        """Let what follows on the device wait for all of the weights, even if it reads them outside of a forward."""
        for part in self._parts:
            part.wait()

    def leave(self) -> None:
        """Free the weights' memory on the device."""
        for part in self._parts:
            part.leave()


class _Part:
    """A module of a model, and its weights in both places."""

    def __init__(self, module: Module, device: torch.device) -> None:
        self._module = module
        self._device = device
        pinned = device.type == "cuda"
        tensors = [*module.parameters(), *module.buffers()]
        self._weights = [(of, of.data.pin_memory() if pinned else of.data) for of in tensors]
        for of, host in self._weights:
            of.data = host
        self._arrival: torch.cuda.Event | None = None
        self._hooks: list[Any] = []

    def make_room(self) -> None:
        for of, host in self._weights:
            of.data = torch.empty_like(host, device=self._device)

    def copy(self) -> None:
        for of, host in self._weights:
            of.data.copy_(host, non_blocking=True)

    def await_before_forward(self, arrival: torch.cuda.Event) -> None:
        """Let the part's modules wait for its weights before their forward."""
        self._arrival = arrival
        weighted = [
            module for module in self._module.modules() if next(module.parameters(recurse=False), None) is not None
        ]
        self._hooks = [module.register_forward_pre_hook(self.wait) for module in weighted]

    def leave(self) -> None:
        self.wait()
        for of, host in self._weights:
            of.data = host

    def wait(self, *_: object) -> None:
        """Let the device's stream wait for the weights. Takes a hook's arguments."""
        if self._arrival is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrival)
        self._arrival = None
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class DevicePlaces:
    """The one offloaded model that is on a device."""

    def __init__(self) -> None:
        self._there: ReferenceType[OffloadedModel] | None = None

    def bring(self, model: OffloadedModel | None) -> None:
        """Bring this model to the device and remove the one that is there; None only removes."""
        there = None if self._there is None else self._there()
        if there is model:
            return
        if there is not None:
            there.leave()
        self._there = None
        if model is not None:
            try:
                model.bring()
            except BaseException:
                model.leave()  # a part of it may be there
                raise
            self._there = ref(model)


class Placement:
    """Brings a denoiser's UNet and VAE to the device, as its policy says."""

    def __init__(
        self,
        unet: Module,
        vae: Module,
        device: torch.device,
        policy: MemoryPolicy = "resident",
        places: DevicePlaces | None = None,
    ) -> None:
        """`unet` and `vae` must be on the device for "resident", else on the host, where they get hooks."""
        self.device = device
        self.policy = policy
        self.places = DevicePlaces() if places is None else places
        self._vae = None if policy == "resident" else OffloadedModel(vae, device)
        self._unet = OffloadedModel(unet, device) if policy == "model_offload" else None
        if policy == "group_offload":
            _offload_groups(unet, device)
        elif policy == "sequential_offload":
            state = unet.state_dict()
            if device.type == "cuda":
                # from elsewhere the driver copies everything twice
                state = {name: of.pin_memory() for name, of in state.items()}
            cpu_offload(unet, execution_device=device, offload_buffers=True, state_dict=state)

    @property
    def resident(self) -> bool:
        """Whether all weights stay on the device."""
        return self.policy == "resident"

    def bring_unet(self) -> None:
        """Bring the UNet for its forwards, and nothing else."""
        if not self.resident:
            self.places.bring(self._unet)

    def bring_vae(self) -> None:
        """Bring the VAE for its forwards, and nothing else."""
        if not self.resident:
            self.places.bring(self._vae)

    def await_vae(self) -> None:
        """Wait for all of the VAE's weights, for readers outside of its forward."""
        if self._vae is not None:
            self._vae.await_whole()


def group_bytes(unet: Module) -> int:
    """The most bytes of a UNet's weights that are on the device at once with "group_offload"."""
    groups = [_bytes(group) for group in _groups(unet)]
    # what is in no group stays for the whole forward; the next group is copied while one computes
    return _bytes(unet) - sum(groups) + sum(sorted(groups)[-2:])


def module_bytes(unet: Module) -> int:
    """The most bytes of a UNet's weights that are on the device at once with "sequential_offload"."""
    return max(sum(of.nbytes for of in module.parameters(recurse=False)) for module in unet.modules())


def _offload_groups(unet: Any, device: torch.device) -> None:
    streamed = device.type == "cuda"
    numbers = [str(number) for number in range(_MOST_BLOCKS)]
    unet.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        # without record_stream: copies don't run ahead of the computing, so that two groups are there and no more
        use_stream=streamed,
        # named so that diffusers goes into them: its own groups are whole blocks, half of SDXL's UNet in one of them
        block_modules=[*_BLOCKS, *numbers],
    )


def _groups(unet: Any) -> list[Module]:
    """The groups of `_offload_groups`."""
    blocks = [*unet.down_blocks, *unet.up_blocks, *([] if unet.mid_block is None else [unet.mid_block])]
    return [layer for block in blocks for child in block.children() if isinstance(child, ModuleList) for layer in child]


def _parts(model: Module) -> Sequence[Module]:
    """Modules that together have all of the model's weights, in the order of its forward."""
    parts: list[Module] = []
    children = dict(model.named_children())
    last = [name for name in ("mid_block", "up_blocks", "conv_norm_out", "conv_act", "conv_out") if name in children]
    for name in [name for name in children if name not in last] + last:
        child = children[name]
        parts += child if isinstance(child, ModuleList) else [child]
    return parts


def _bytes(model: Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())
