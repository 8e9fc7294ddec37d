"""Linears in 8 bits: as large as planned, as alike as promised, and right in every way that weights come and go."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import Transformer2DModel
from pydantic import ValidationError
from torch.nn import Linear
from torch.utils._python_dispatch import TorchDispatchMode

from deployments.engine.adapters.lora import AdaptedModel
from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.checkpoints.denoiser_weights import PlaceFor, placed, refilled
from deployments.engine.checkpoints.loader import describe_denoiser, load_denoiser, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.compile.spec import GraphSpec
from deployments.engine.config import EngineSettings, LoraSettings, MemoryPolicy
from deployments.engine.device import Device
from deployments.engine.engine import Engine
from deployments.engine.errors import CheckpointError, StateRefused
from deployments.engine.families.family import FamilyName
from deployments.engine.memory.footprint_tracing import footprint_of
from deployments.engine.memory.peak_tracing import peak_bytes
from deployments.engine.quantization import (
    QuantizedLinear,
    add_scratch,
    is_quantized,
    quantize,
    quantized_linears,
    saved_bytes,
)
from deployments.engine.residency.quantization_check import BOUND, check_likeness
from deployments.engine.residency.weight_loader import WeightLoader
from deployments.engine.row_threads import RowThreads
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Event, Lora, Progress
from deployments.engine.unet import UnetInputs
from tests.deployments.engine.checkpoints.checkpoint_loading import CPU, change_unet
from tests.deployments.engine.conftest import Encode
from tests.deployments.engine.listening import Listener, ask
from tests.loras import UNET_LAYERS, random_updates, write_kohya
from tests.tiny_checkpoints import write_shallow_sd15

RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

DEMOS: dict[str, FamilyName] = {"demo-sd15": "sd15", "demo-sdxl": "sdxl"}


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shallow_sd15(tmp_path_factory.mktemp("shallow") / "sd15", channels=16)


@pytest.fixture
def other(shallow: Path, tmp_path: Path) -> Path:
    """A checkpoint of the same architecture that draws something else."""
    folder = shutil.copytree(shallow, tmp_path / "other")
    change_unet(folder, lambda tensors: [tensor.mul_(1.1) for tensor in tensors.values()])
    return folder


def spec_of(folder: Path | str, family: FamilyName = "sd15") -> CheckpointSpec:
    return CheckpointSpec(family=family, source=str(folder))


def loader_of(gib: float = 0.0, *, quantized: bool = True, **folders: Path) -> WeightLoader:
    settings = EngineSettings(device="cpu", host_memory_gib=gib, quantize="int8" if quantized else "none")
    catalogue = {name: spec_of(folder) for name, folder in folders.items()}
    return WeightLoader(settings, catalogue, read_denoiser, Device(CPU, torch.float32, RowThreads(1)))


def parts(model: torch.nn.Module) -> dict[str, bytes]:
    """All there is of a model's weights, to the byte."""
    tensors = model.state_dict().items()
    return {name: tensor.flatten().view(torch.uint8).numpy().tobytes() for name, tensor in tensors}


def place_for(dtype: torch.dtype = torch.float32) -> PlaceFor:
    return PlaceFor(device=CPU, dtype=dtype, vae_dtype=dtype, quantized=True)


def addresses(model: torch.nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("name", DEMOS)
def test_the_demo_models_are_as_small_as_planned_and_alike(name: str) -> None:
    spec = spec_of(f"package:demo_models/{name}", DEMOS[name])
    read = read_denoiser(spec)
    weights = placed(read, place_for())
    whole = load_denoiser(spec, CPU, torch.float32)
    assert is_quantized(weights.unet)
    assert not is_quantized(whole.unet)
    assert not is_quantized(weights.vae)
    left = {name for name, of in weights.unet.named_modules() if isinstance(of, Linear | torch.nn.Conv2d)}
    left -= {name for name, _ in quantized_linears(weights.unet)}
    assert all(".transformer_blocks." not in name for name in left)
    assert {"time_embedding.linear_1", "conv_in", "conv_out", "mid_block.resnets.0.time_emb_proj"} < left
    for name in left:
        assert torch.equal(weights.unet.get_submodule(name).weight, whole.unet.get_submodule(name).weight), name
    size = sum(tensor.nbytes for tensor in weights.unet.state_dict().values())
    in_full = sum(tensor.nbytes for tensor in whole.unet.state_dict().values())
    linears = sum(of.weight.numel() for _, of in quantized_linears(weights.unet))
    assert size == in_full - saved_bytes(whole.unet)
    assert 2.7 * linears < in_full - size < 3 * linears
    assert 0 < check_likeness("demo", weights, read.unet.tensors) < BOUND / 3


def test_all_of_a_quantised_unet_s_tensors_are_parameters(shallow: Path) -> None:
    """diffusers' group offloading with streams never takes the buffers of a group's modules off the device."""
    unet = placed(read_denoiser(spec_of(shallow)), place_for()).unet
    assert is_quantized(unet)
    parameters = dict(unet.named_parameters())
    assert parameters.keys() == unet.state_dict().keys()
    assert not list(unet.named_buffers())
    assert {of.dtype for of in parameters.values()} == {torch.float32, torch.int8}
    assert not any(of.requires_grad for of in parameters.values())


def test_a_forward_takes_what_is_planned() -> None:
    def peak(change: Callable[[torch.nn.Module], None]) -> int:
        unet = torch.nn.Module()
        unet.level = torch.nn.Module()
        with init_empty_weights():
            unet.level.attentions = torch.nn.ModuleList(
                [Transformer2DModel(2, 32, in_channels=64, norm_num_groups=8, cross_attention_dim=160)]
            )
        torch.nn.Module.to(unet, torch.bfloat16)
        change(unet)
        states, text = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((4, 64, 32, 32), (4, 77, 160)))
        return peak_bytes(lambda: unet.level.attentions[0](states, text, return_dict=False))

    assert peak(add_scratch) == pytest.approx(peak(quantize), rel=0.05)


def test_a_checkpoint_that_does_not_bear_it_is_refused(copy: Path) -> None:
    def ruin(tensors: dict[str, torch.Tensor]) -> None:
        """Huge weights for a channel that is always 0: they add nothing, and beside them all others count as none."""
        for block in [name.removesuffix("norm3.bias") for name in tensors if name.endswith("norm3.bias")]:
            for norm, linear in (("norm1", "attn1.to_v"), ("norm3", "ff.net.0.proj")):
                tensors[f"{block}{norm}.weight"][0] = tensors[f"{block}{norm}.bias"][0] = 0
                tensors[f"{block}{linear}.weight"][:, 0] = 1e7

    change_unet(copy, ruin)
    loader_of(ruined=copy, quantized=False).place("ruined", read_denoiser(spec_of(copy)), None)
    with pytest.raises(CheckpointError, match=r"'ruined' can't be quantised: .* off, 0\.\d+ is allowed"):
        loader_of(ruined=copy).place("ruined", read_denoiser(spec_of(copy)), None)


@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_a_swap_leaves_the_other_checkpoint_in_the_same_memory(shallow: Path, other: Path, gib: float) -> None:
    loader = loader_of(gib, a=shallow, b=other)
    wanted = {
        name: parts(placed(read_denoiser(spec_of(folder)), place_for()).unet)
        for name, folder in (("a", shallow), ("b", other))
    }
    assert wanted["a"] != wanted["b"]
    weights, _ = loader.place("a", loader.read("a"), None)
    places = addresses(weights.unet)
    for name in ("b", "a", "b"):
        weights, _ = loader.place(name, loader.read(name), weights)
        assert parts(weights.unet) == wanted[name]
        assert addresses(weights.unet) == places


def test_nothing_is_copied_of_a_checkpoint_that_lacks_a_tensor(shallow: Path, other: Path) -> None:
    weights = placed(read_denoiser(spec_of(shallow)), place_for())
    before = parts(weights.unet)
    name = next(name for name, _ in quantized_linears(weights.unet))
    change_unet(other, lambda tensors: tensors.pop(f"{name}.weight"))
    with pytest.raises(CheckpointError, match=rf"1 tensors missing \({name}.weight"):
        refilled(weights, read_denoiser(spec_of(other)))
    assert parts(weights.unet) == before


def test_images_are_the_same_bits_whatever_came_before_or_is_beside(
    shallow: Path, other: Path, run_together: RunTogether, encode_sd15: Encode
) -> None:
    settings = EngineSettings(
        device="cpu", cpu_threads=1, resident_checkpoints=1, max_rows=8, reproducible_rows=8, quantize="int8"
    )
    catalogue = {"a": spec_of(shallow), "b": spec_of(other)}
    text = encode_sd15("a red circle")

    def one(lane: str, checkpoint: str, **changes: Any) -> tuple[DenoiseRequest, Conditioning]:
        return ask(lane, **({"checkpoint": checkpoint, "reproducible": True, "steps": 3} | changes)), text

    def images(*lanes: list[tuple[DenoiseRequest, Conditioning]]) -> list[list[bytes]]:
        engine = Engine(settings, catalogue)
        engine.start()
        try:
            found = [run_together(engine, together) for together in lanes]
        finally:
            engine.stop()
        return [[result.image.tobytes() for result in results if result.image is not None] for results in found]

    (alone,) = images([one("1", "b")])
    beside = [one("2", "b", seed=9, steps=4, sampler="heun"), one("3", "b", seed=8, guidance_scale=1.5)]
    first, second, third = images([one("1", "a")], [one("1", "b"), *beside], [one("1", "a")])
    assert second[0] == alone[0] != first[0]
    assert third == first


def test_loras_add_to_quantised_layers_what_they_add_to_others(
    shallow: Path, run_together: RunTogether, encode_sd15: Encode, tmp_path: Path
) -> None:
    unet = load_denoiser(spec_of(shallow), CPU, torch.float32).unet
    write_kohya(tmp_path / "all.safetensors", {"unet": random_updates(unet, UNET_LAYERS, seed=1)})
    text = encode_sd15("a red cat")
    requests = [ask(name, output="latents", steps=2) for name in ("plain", "worn")]
    requests[1] = dataclasses.replace(requests[1], loras=(Lora("all", 1.0),))

    def latents(kind: Literal["none", "int8"]) -> list[torch.Tensor]:
        settings = EngineSettings(device="cpu", cpu_threads=1, quantize=kind)
        engine = Engine(settings, {"sd15": spec_of(shallow)}, loras=LoraSettings(folder=str(tmp_path)))
        engine.start()
        try:
            results = run_together(engine, [(request, text) for request in requests])
        finally:
            engine.stop()
        return [torch.from_numpy(result.latents) for result in results if result.latents is not None]

    plain, worn = latents("none")
    quantised, quantised_worn = latents("int8")
    added = (worn - plain).abs().mean()
    assert added > 0.1
    assert 0 < (quantised - plain).abs().mean() < 0.02 * added
    assert (quantised_worn - worn).abs().mean() < 0.05 * added


def test_a_lora_is_placed_without_the_weights_being_computed(shallow: Path, tmp_path: Path) -> None:
    unet = placed(read_denoiser(spec_of(shallow)), place_for(torch.bfloat16)).unet
    write_kohya(tmp_path / "all.safetensors", {"unet": random_updates(unet, UNET_LAYERS, seed=1)})
    file = LoraFiles(LoraSettings(folder=str(tmp_path))).read("all")
    linears = {of for _, of in quantized_linears(unet)}

    class Computed(TorchDispatchMode):
        """Collects what is made of int8 numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.results: list[Any] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if any(isinstance(of, torch.Tensor) and of.dtype == torch.int8 for of in args):
                self.results.append(result)
            return result

    with Computed() as computed:
        adapter = AdaptedModel(unet, "unet", CPU).adapter(file, 1.0)
        assert not computed.results
        assert next(iter(linears)).weight.dtype == torch.bfloat16
        assert computed.results
    assert adapter is not None
    placed_on = [(layer, update) for layer, update in adapter.updates.items() if layer in linears]
    assert placed_on
    assert {of.dtype for _, update in placed_on for of in update.deltas[0].delta.tensors} == {torch.bfloat16}


def test_a_state_of_unquantised_weights_is_refused(shallow: Path, encode_sd15: Encode) -> None:
    request, text = ask("1", checkpoint="a", steps=3, state_every=1), encode_sd15("a red circle")

    def events(kind: Literal["none", "int8"], request: DenoiseRequest) -> list[Event | Exception]:
        engine = Engine(EngineSettings(device="cpu", cpu_threads=1, quantize=kind), {"a": spec_of(shallow)})
        engine.start()
        try:
            listener = Listener()
            engine.submit(request, text, listener)
            listener.outcome()
        finally:
            engine.stop()
        return listener.items

    *progress, plain = events("none", request)
    *_, quantised = events("int8", request)
    assert isinstance(plain, DenoiseResult)
    assert isinstance(quantised, DenoiseResult)
    assert (plain.dtype, quantised.dtype) == ("float32", "float32+int8")
    state = next(event.state for event in progress if isinstance(event, Progress) and event.state is not None)
    (refusal,) = events("int8", dataclasses.replace(request, resume=state))
    assert isinstance(refusal, StateRefused)
    assert str(refusal) == "the state is of a lane with another dtype"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_alone_and_zeros_stay_zeros(dtype: torch.dtype) -> None:
    linear = Linear(16, 32).to(dtype).requires_grad_(False)  # SDXL's empty prompt is one; weights may have some
    linear.weight[3:5] = 0
    quantised = QuantizedLinear(linear)
    texts = torch.randn(2, 7, 16, dtype=dtype)
    texts[1] = 0
    with torch.no_grad():
        found, wanted = quantised(texts), linear(texts)
        turned = quantised(texts.flip(0)).flip(0)
    assert torch.equal(turned, found)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.2)
    torch.testing.assert_close(found[1], wanted[1])
    torch.testing.assert_close(found[..., 3:5], wanted[..., 3:5])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.export itself
@pytest.mark.parametrize("policy", ["model_offload", "group_offload", "sequential_offload"])
def test_offloaded_it_draws_the_same(
    policy: MemoryPolicy, shallow: Path, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text = encode_sd15("a red circle")

    def image(memory: MemoryPolicy) -> bytes:
        settings = EngineSettings(device="cpu", cpu_threads=1, quantize="int8", memory=memory)
        engine = Engine(settings, {"a": spec_of(shallow)})
        engine.start()
        try:
            (result,) = run_together(engine, [(ask("1", checkpoint="a", steps=3), text)])
        finally:
            engine.stop()
        assert result.image is not None
        return result.image.tobytes()

    assert image(policy) == image("resident")


def test_what_is_exported_to_be_compiled_reads_plain_tensors(tiny_sd15: Path) -> None:
    linear = QuantizedLinear(Linear(16, 32).requires_grad_(False))
    inputs = torch.randn(2, 7, 16)
    with torch.no_grad():
        program = torch.export.export(linear, (inputs,))
        torch.testing.assert_close(program.module()(inputs), linear(inputs))
    assert set(program.state_dict) == {"bias", "numbers", "scales"}
    unet = placed(read_denoiser(spec_of(tiny_sd15)), place_for(torch.bfloat16)).unet
    random = torch.randn(2, 77, 16, dtype=torch.bfloat16)
    inputs_of_unet = UnetInputs(sample=random[:, :4, None], timesteps=random[:, 0, 0], hidden_states=random)
    spec = GraphSpec.of(unet, inputs_of_unet, channels_last=False)
    found, wanted = GraphSpec.from_json(spec.json).new_unet().state_dict(), unet.state_dict()
    assert {name: (of.shape, of.dtype) for name, of in found.items()} == {
        name: (of.shape, of.dtype) for name, of in wanted.items()
    }


def test_the_plan_has_what_is_saved(tiny_sd15: Path) -> None:
    architecture = describe_denoiser(spec_of(tiny_sd15))
    plain, int8 = (
        footprint_of(architecture, EngineSettings(quantize=kind), torch.float32) for kind in ("none", "int8")
    )
    unet = load_denoiser(spec_of(tiny_sd15), CPU, torch.float32).unet
    assert plain.unet - int8.unet == saved_bytes(unet) > 0
    assert (plain.vae, plain.decodes) == (int8.vae, int8.decodes)


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_other_kinds_are_refused_with_those_that_there_are(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"quantize\n.*'none' or 'int8'"):
        EngineSettings.model_validate({"quantize": kind})
