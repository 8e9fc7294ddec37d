"""Weights that come and go give the same bits, and are on the device only while they are needed."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Module

from deployments.engine.batch import Batch
from deployments.engine.checkpoints.denoiser_weights import PlaceFor, placed
from deployments.engine.checkpoints.loader import load_denoiser, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, LoraSettings, MemoryPolicy
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.engine import Engine
from deployments.engine.lanes.lane import Lane
from deployments.engine.memory.offload import DevicePlaces, OffloadedModel, Placement, _Part, group_bytes, module_bytes
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Lora
from deployments.engine.vae.autoencoder import Vae
from tests.deployments.engine.listening import ask
from tests.loras import UNET_LAYERS, random_updates, write_kohya

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]
CPU = torch.device("cpu")
OFFLOADS: tuple[MemoryPolicy, ...] = ("model_offload", "group_offload", "sequential_offload")


def lanes(encode: Encode) -> list[tuple[DenoiseRequest, Conditioning]]:
    """Of two checkpoints, one with an image to encode, and of different lengths: steps and decodes take turns."""
    picture = torch.arange(64 * 64 * 3, dtype=torch.uint8).view(64, 64, 3).numpy()
    return [
        (ask("a", steps=4), encode("a")),
        (ask("b", steps=6, seed=8, sampler="dpmpp_2m"), encode("b")),
        (ask("c", steps=4, checkpoint="sd15-twin"), encode("c")),
        (ask("d", steps=6, image=picture, strength=0.5), encode("d")),
    ]


def pictures(results: list[DenoiseResult]) -> list[bytes]:
    return [result.image.tobytes() for result in results if result.image is not None]


def test_loras_are_worn(tiny_sd15: Path, run_together: RunTogether, encode_sd15: Encode, tmp_path: Path) -> None:
    spec = CheckpointSpec(family="sd15", source=str(tiny_sd15))
    unet = load_denoiser(spec, CPU, torch.float32).unet
    write_kohya(tmp_path / "all.safetensors", {"unet": random_updates(unet, UNET_LAYERS, seed=1)})
    worn = [(ask("worn", steps=3, loras=(Lora("all", 1.0),)), encode_sd15("a"))]

    def image(memory: MemoryPolicy, lanes: list[tuple[DenoiseRequest, Conditioning]]) -> list[bytes]:
        settings = EngineSettings(device="cpu", cpu_threads=1, memory=memory)
        engine = Engine(settings, {"sd15": spec}, loras=LoraSettings(folder=str(tmp_path)))
        engine.start()
        try:
            return pictures(run_together(engine, lanes))
        finally:
            engine.stop()

    wanted = image("resident", worn)
    assert wanted != image("resident", [(ask("plain", steps=3), encode_sd15("a"))])
    for policy in OFFLOADS:
        assert image(policy, worn) == wanted, policy


def test_images_are_those_of_a_resident_engine(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    wanted = pictures(run_together(make_engine(), lanes(encode_sd15)))
    assert len(wanted) == 4
    for policy in OFFLOADS:
        engine = make_engine(memory=policy)
        assert pictures(run_together(engine, lanes(encode_sd15))) == wanted, policy
        assert engine.memory().policy == policy
        engine.stop()


@pytest.mark.parametrize("policy", OFFLOADS)
def test_a_checkpoint_that_leaves_frees_its_memory_and_comes_back(
    policy: MemoryPolicy, make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    engine = make_engine(memory=policy, resident_checkpoints=1)
    first = pictures(run_together(engine, [(ask("a", steps=3), encode_sd15("a"))]))
    unet = weakref.ref(engine._loop.residency["sd15"].weights.unet)
    run_together(engine, [(ask("b", checkpoint="sd15-twin", steps=3), encode_sd15("b"))])
    gc.collect()
    assert unet() is None
    assert pictures(run_together(engine, [(ask("a", steps=3), encode_sd15("a"))])) == first


def test_of_unets_and_vaes_one_is_there_at_a_time(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    engine = make_engine(memory="model_offload", cpu_threads=1)
    for name in ("sd15", "sd15-twin"):
        engine.preload(name).result()
    models = {
        f"{name} {part}": getattr(engine._loop.residency[name].weights, part)
        for name in ("sd15", "sd15-twin")
        for part in ("unet", "vae")
    }
    engine._loop.residency["sd15"].weights.placement.places.bring(None)
    on_host = {name: _addresses(model) for name, model in models.items()}

    def there() -> set[str]:
        return {name for name, of in models.items() if _addresses(of) != on_host[name]}

    step = Denoiser.step

    def watched(self: Denoiser, batch: Batch[Lane]) -> tuple[torch.Tensor, torch.Tensor]:
        taken = step(self, batch)
        seen.append(there())
        return taken

    monkeypatch.setattr(Denoiser, "step", watched)
    for name in ("sd15 vae", "sd15-twin vae"):
        models[name].post_quant_conv.register_forward_hook(lambda *_: seen.append(there()))
    run_together(engine, lanes(encode_sd15))
    assert {frozenset(one) for one in seen} >= {frozenset({name}) for name in models}
    assert all(len(one) == 1 for one in seen)


def _addresses(model: Module) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in model.parameters())


def test_a_model_has_the_same_weights_wherever_they_are() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3)).eval()
    model.to(memory_format=torch.channels_last)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strides = [parameter.stride() for parameter in model.parameters()]
    offloaded = OffloadedModel(model, CPU)
    host = _addresses(model)
    for _ in range(2):
        offloaded.bring()
        assert all(here != there for here, there in zip(_addresses(model), host, strict=True))
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
        assert [parameter.stride() for parameter in model.parameters()] == strides
        offloaded.leave()
        assert _addresses(model) == host


def test_a_model_that_is_gone_is_nobodys_to_free() -> None:
    places = DevicePlaces()
    first = OffloadedModel(torch.nn.Linear(2, 2), CPU)
    places.bring(first)
    del first
    second = OffloadedModel(torch.nn.Linear(2, 2), CPU)
    places.bring(second)
    places.bring(None)


def test_memory_that_runs_out_half_way_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    offloaded, places = OffloadedModel(model, CPU), DevicePlaces()
    host, empty_like = _addresses(model), torch.empty_like
    calls = iter(range(100))

    def scarce(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return empty_like(*args, **kwargs)

    monkeypatch.setattr(torch, "empty_like", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        places.bring(offloaded)
    assert _addresses(model) == host
    places.bring(offloaded)
    assert all(here != there for here, there in zip(_addresses(model), host, strict=True))


def test_groups_and_modules_are_parts_of_the_unet(tiny_sd15: Path) -> None:
    unet: Any = load_denoiser(CheckpointSpec(family="sd15", source=str(tiny_sd15)), CPU, torch.float32).unet
    whole = sum(tensor.nbytes for tensor in unet.state_dict().values())
    largest = max(
        sum(tensor.nbytes for tensor in layer.state_dict().values())
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
        for layer in block.resnets
    )
    assert module_bytes(unet) < largest < group_bytes(unet) < whole


def test_a_vae_that_computes_in_float32_is_widened_once_it_is_there(
    tiny_sd15: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_denoiser(CheckpointSpec(family="sd15", source=str(tiny_sd15)))
    vaes: list[Vae] = []
    policies: tuple[MemoryPolicy, ...] = ("resident", "model_offload")
    for policy in policies:
        weights = placed(read, PlaceFor(device=CPU, dtype=torch.float16, vae_dtype=torch.float16, policy=policy))
        weights.vae.register_to_config(force_upcast=True)
        vaes.append(Vae.of(weights))
    # as late as a stream of its own may copy: when somebody waits for it
    copy = _Part.copy
    monkeypatch.setattr(_Part, "make_room", _filled_with_nothing)
    monkeypatch.setattr(_Part, "copy", lambda part: None)
    monkeypatch.setattr(_Part, "wait", lambda part, *_: copy(part))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = torch.arange(64 * 64 * 3, dtype=torch.uint8).view(64, 64, 3).numpy()
    with torch.no_grad():
        wanted, found = ([vae.decode(latents)[0], _encoded(vae, pixels)] for vae in vaes)
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, np.ndarray)
        assert isinstance(other, np.ndarray)
        assert np.array_equal(one, other)


def _filled_with_nothing(part: _Part) -> None:
    for of, host in part._weights:
        of.data = torch.full_like(host, torch.nan)


def _encoded(vae: Vae, pixels: np.ndarray) -> np.ndarray:
    return vae.encode(pixels, torch.Generator().manual_seed(0)).numpy()


def test_single_modules_come_from_pinned_memory(tiny_sd15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_denoiser(CheckpointSpec(family="sd15", source=str(tiny_sd15)), CPU, torch.float32)
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())  # what pinning is without CUDA
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    names = [name for name, _ in weights.unet.named_parameters()]
    Placement(weights.unet, torch.nn.Identity(), torch.device("cuda", 0), "sequential_offload")
    hook: Any = weights.unet.conv_in._hf_hook
    found = dict(hook.weights_map.dataset)
    assert sorted(found) == sorted(names)
    assert all(any(tensor is one for one in pinned) for tensor in found.values())
