"""LyCORIS' kinds of adapters against its own merges: every kind and spelling, and five kinds among lanes without."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.adapters.lora import AdaptedModel, AdaptedRows, Adapter
from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.config import LoraSettings
from deployments.engine.errors import LoraRefused
from deployments.engine.row_threads import computing
from tests.loras import UNET_LAYERS, write
from tests.lycoris_files import KINDS, merged, modules, tensors, trained

# a part of the UNet has all kinds of layers
LAYERS = rf"(down_blocks\.1|mid_block)\..*\.({UNET_LAYERS})"
NORMS = r"(down_blocks\.1|mid_block)\..*norm\d?"
# the same layers as the original code names them
ORIGINAL = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
}
SPELT = "|".join(name.replace(".", r"\.") for name in ORIGINAL)
READ = ("LoCon", "LoHa", "LoKr, both decomposed", "DoRA", "(IA)3", "(IA)3 on inputs", "full")


def forward(unet: Any) -> torch.Tensor:
    """Three rows of the UNet."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(3, 77, unet.config.cross_attention_dim, generator=generator)
    with torch.inference_mode():
        output: torch.Tensor = unet(torch.randn(3, 4, 8, 8, generator=generator), torch.tensor(500), text).sample
    return output


def adapter_of(folder: Path, tensors: Mapping[str, torch.Tensor], unet: Any, weight: float = 1.0) -> Adapter:
    """The adapter of a file with these tensors."""
    write(folder / "style.safetensors", tensors)
    model = AdaptedModel(unet, "unet", torch.device("cpu"))
    adapter = model.adapter(LoraFiles(LoraSettings(folder=str(folder))).read("style"), weight)
    assert adapter is not None
    return adapter


def wearing(unet: Any, *adapters: Adapter) -> torch.Tensor:
    """The rows of `forward`, the second with the adapters."""
    model = AdaptedModel(unet, "unet", torch.device("cpu"))
    with model.adapted(model.plan([AdaptedRows(1, 2, adapters)])), computing(slice(0, 3)):
        return forward(unet)


def of_kind(unet: Any, kind: str, layers: str = LAYERS, seed: int = 1) -> dict[str, Any]:
    return modules(unet, NORMS if kind == "norms" else layers, KINDS[kind], seed=seed)


def assert_as(found: torch.Tensor, wanted: torch.Tensor, plain: torch.Tensor) -> None:
    """The second row is the wanted one, within 1e-4 of its scale; the others have the bits that they had."""
    scale = float(wanted.abs().max())
    assert float((wanted[1] - plain[1]).abs().max()) > 0.002 * scale  # it makes a difference
    assert float((found[1] - wanted[1]).abs().max()) <= 1e-4 * scale
    assert torch.equal(found[::2], plain[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_its_merge(kind: str, tmp_path: Path, sd15_pipeline: Any) -> None:
    unet = sd15_pipeline.unet
    of = of_kind(unet, kind)
    plain = forward(unet)
    whole = adapter_of(tmp_path, tensors(of, "lora_unet_", "_"), unet)
    assert len(whole.updates) == len(of)
    for weight in (1.0, -0.6):
        assert_as(wearing(unet, Adapter(whole.updates, weight)), forward(merged(unet, (of, weight))), plain)
    assert torch.equal(forward(unet), plain)


@pytest.mark.parametrize("kind", ["LoHa", "LoHa, large rank", "LoHa, Tucker", "LoKr, both decomposed", "LoKr, Tucker"])
def test_alpha_scales_as_in_training(kind: str, tmp_path: Path, sd15_pipeline: Any) -> None:
    """LyCORIS' merges of these scale twice: so its modules in their layers are the reference."""
    unet = sd15_pipeline.unet

    def make(layer: Any) -> Any:
        module = KINDS[kind](layer)
        module.scale = 0.4
        module.alpha.copy_(0.4 * module.lora_dim)
        return module

    of = modules(unet, LAYERS, make, seed=2, size=0.5)
    adapter = adapter_of(tmp_path, tensors(of, "lora_unet_", "_"), unet, 0.8)
    assert_as(wearing(unet, adapter), forward(trained(unet, of, 0.8)), forward(unet))


@pytest.mark.parametrize("kind", READ)
def test_every_spelling_of_layers(kind: str, tmp_path: Path, sd15_pipeline: Any) -> None:
    unet = sd15_pipeline.unet
    of = of_kind(unet, kind, SPELT)
    original = {ORIGINAL[name]: module for name, module in of.items()}
    plain, wanted = forward(unet), forward(merged(unet, (of, 1.0)))
    for written in (
        tensors(of, "lora_unet_", "_"),
        tensors(original, "lora_unet_", "_"),
        tensors(of, "unet."),
        tensors(of, "base_model.model."),
        tensors(of, "lora_unet."),
        tensors(of, "diffusion_model."),
        tensors(original, "diffusion_model."),
    ):
        assert_as(wearing(unet, adapter_of(tmp_path, written, unet)), wanted, plain)


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_small_floats_and_no_alpha(kind: str, dtype: torch.dtype, tmp_path: Path, sd15_pipeline: Any) -> None:
    unet = sd15_pipeline.unet
    of = of_kind(unet, kind)
    with torch.no_grad():
        for module in of.values():
            if kind in ("LoCon", "DoRA"):
                module.scale = 1.0  # its alpha isn't the rank
            for parameter in module.parameters():
                parameter.copy_(parameter.to(dtype).float())
    written = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in tensors(of, "lora_unet_", "_").items()
        if not key.endswith(".alpha")
    }
    assert_as(wearing(unet, adapter_of(tmp_path, written, unet)), forward(merged(unet, (of, 1.0))), forward(unet))


@pytest.mark.parametrize("ending", ["", ".weight", ".default.weight"])
def test_peft_s_name_of_dora(ending: str, tmp_path: Path, sd15_pipeline: Any) -> None:
    """Its norms are always the outputs'; of a convolution they are (1, out, 1, 1)."""
    unet = sd15_pipeline.unet
    of = of_kind(unet, "DoRA")
    written = {}
    for key, tensor in tensors(of, "unet.").items():
        layer, _, kind = key.rpartition(".")
        if kind == "dora_scale":
            norms = tensor.flatten() if tensor.ndim == 2 else tensor.transpose(0, 1)
            written[f"{layer}.lora_magnitude_vector{ending}"] = norms
        else:
            written[key] = tensor
    assert_as(wearing(unet, adapter_of(tmp_path, written, unet)), forward(merged(unet, (of, 1.0))), forward(unet))


def test_several_on_one_row_add_up_in_any_order(tmp_path: Path, sd15_pipeline: Any) -> None:
    """Each changes the checkpoint's own weights, whatever else is worn."""
    unet = sd15_pipeline.unet
    kinds = [of_kind(unet, kind, seed=seed) for seed, kind in enumerate(("LoHa", "DoRA", "(IA)3", "(IA)3 on inputs"))]
    adapters = [adapter_of(tmp_path, tensors(of, "lora_unet_", "_"), unet, 0.5) for of in kinds]
    wanted = forward(merged(unet, *((of, 0.5) for of in kinds)))
    plain = forward(unet)
    assert_as(wearing(unet, *adapters), wanted, plain)
    assert_as(wearing(unet, *reversed(adapters)), wanted, plain)


def test_a_file_for_another_model_is_refused_by_its_shape(tmp_path: Path, sd15_pipeline: Any) -> None:
    unet = sd15_pipeline.unet
    layer = "down_blocks.1.resnets.0.conv1"
    product = tensors(of_kind(unet, "DoRA", layer), "unet.")
    refused = {
        r"hada_w1_a changes a weight of shape \(3, 5\), this model's is": {
            f"unet.{layer}.hada_w{number}_{side}": torch.ones(3, 1) if side == "a" else torch.ones(1, 5)
            for number in (1, 2)
            for side in "ab"
        },
        r"lokr_w1 changes a weight of shape 3 x 3 blocks": {
            f"unet.{layer}.lokr_w1": torch.ones(3, 3),
            f"unet.{layer}.lokr_w2": torch.ones(1, 1),
        },
        r"lokr_w1 changes a weight of shape 2 x 2 blocks of \(1, 1\)": {
            f"unet.{layer}.lokr_w1": torch.ones(2, 2),
            f"unet.{layer}.lokr_w2": torch.ones(1, 1),
        },
        r"rescales by numbers of shape \(3, 1\)": product | {f"unet.{layer}.dora_scale": torch.ones(3, 1)},
        r"on_input rescales by numbers of shape \(3,\)": {
            f"unet.{layer}.weight": torch.ones(3),
            f"unet.{layer}.on_input": torch.tensor(0),
        },
        r"norm1\.(weight|on_input) rescales a norm": {
            "unet.down_blocks.1.resnets.0.norm1.weight": torch.ones(3),
            "unet.down_blocks.1.resnets.0.norm1.on_input": torch.tensor(0),
        },
    }
    for reason, written in refused.items():
        with pytest.raises(LoraRefused, match=f"'style' is for another kind of model: .*{reason}"):
            adapter_of(tmp_path, written, unet)


def test_an_output_that_a_dora_makes_zero(tmp_path: Path, sd15_pipeline: Any) -> None:
    """Its row of the weight has no direction, and stays zero."""
    unet = copy.deepcopy(sd15_pipeline.unet)
    of = of_kind(unet, "DoRA", "conv_in")
    (module,) = of.values()
    with torch.no_grad():
        module.lora_up.weight[3] = 0
        unet.conv_in.weight[3] = 0
    assert_as(
        wearing(unet, adapter_of(tmp_path, tensors(of, "unet."), unet)), forward(merged(unet, (of, 1.0))), forward(unet)
    )
