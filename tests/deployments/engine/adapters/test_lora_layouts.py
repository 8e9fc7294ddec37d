"""LoRA files as trainers write them change a model as weights that have them merged in."""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from deployments.engine.adapters.lora import AdaptedModel, AdaptedRows
from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import LoraSettings
from deployments.engine.errors import LoraRefused
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptText
from deployments.engine.prompts.syntax import Lora
from deployments.engine.prompts.textual_inversion import PromptVectors
from deployments.engine.row_threads import computing
from deployments.engine.types import Array
from tests.loras import write
from tests.tiny_checkpoints import PUBLISHED_LAYERS, write_tiny_sd15

WEIGHT = 0.7
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
NORMS = ("down_blocks.0.resnets.0.norm1", "conv_norm_out", "mid_block.attentions.0.transformer_blocks.0.norm2")
# the same layers as the original code names them
ORIGINAL = {
    ATTENTION: "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    CONV: "input_blocks.1.0.in_layers.2",
    NORMS[0]: "input_blocks.1.0.in_layers.0",
    NORMS[1]: "out.0",
    NORMS[2]: "middle_block.1.transformer_blocks.0.norm2",
}


@pytest.fixture(scope="module")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the number of layers that ORIGINAL goes by."""
    return write_tiny_sd15(tmp_path_factory.mktemp("published") / "tiny-sd15", layers=PUBLISHED_LAYERS)


@pytest.fixture(scope="module")
def sd15_pipeline(tiny_sd15: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        tiny_sd15, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )


@dataclass
class Layout:
    """A file, and what it adds to weights and biases by the modules' names."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def random(*shape: int, seed: int, size: float = 0.3) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product(of: torch.nn.Module, name: str, rank: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Down and up for a layer."""
    out, *rest = of.get_submodule(name).weight.shape  # type: ignore[union-attr,misc]
    return random(rank, *rest, seed=seed), random(out, rank, *(1 for _ in rest[1:]), seed=seed + 1)


def joined(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.einsum("or,r...->o...", up.flatten(1).float(), down.float())


def kohya(unet: torch.nn.Module, dtype: torch.dtype = torch.float32, alpha: Any = 2.0) -> Layout:
    layout = Layout()
    for name in (ATTENTION, CONV):
        down, up = (tensor.to(dtype) for tensor in product(unet, name))
        key = f"lora_unet_{name.replace('.', '_')}"
        layout.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        layout.tensors[f"{key}.alpha"] = torch.as_tensor(alpha)
        layout.weights[name] = joined(down, up) * float(alpha) / 4
    return layout


def named(unet: torch.nn.Module, prefix: str, down_key: str, up_key: str, *, original: bool = False) -> Layout:
    layout = Layout()
    for name in (ATTENTION, CONV):
        down, up = product(unet, name)
        key = prefix + (ORIGINAL[name] if original else name)
        layout.tensors |= {f"{key}.{down_key}.weight": down, f"{key}.{up_key}.weight": up}
        layout.weights[name] = joined(down, up)
    return layout


def rank_stabilised(unet: torch.nn.Module) -> Layout:
    layout = named(unet, "unet.", "lora_A", "lora_B")
    settings = {"unet.r": 4, "unet.lora_alpha": 6, "unet.use_rslora": True}
    layout.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    layout.weights = {name: 6 / 4**0.5 * weight for name, weight in layout.weights.items()}
    return layout


def with_scalar(unet: torch.nn.Module) -> Layout:
    layout = kohya(unet)
    key = f"lora_unet_{CONV.replace('.', '_')}"
    layout.tensors[f"{key}.scalar"] = torch.tensor(-0.5)
    layout.weights[CONV] *= -0.5
    return layout


def decomposed(unet: torch.nn.Module) -> Layout:
    """A 3 x 3 kernel as a 1 x 1, a 3 x 3 from rank to rank, and a 1 x 1."""
    out, channels = unet.get_submodule(CONV).weight.shape[:2]  # type: ignore[union-attr,misc]
    down, mid, up = random(4, channels, 1, 1, seed=1), random(4, 4, 3, 3, seed=2), random(out, 4, 1, 1, seed=3)
    key = f"lora_unet_{CONV.replace('.', '_')}"
    tensors = {f"{key}.lora_{name}.weight": tensor for name, tensor in (("down", down), ("mid", mid), ("up", up))}
    kernel = torch.einsum("or,rshw,si->oihw", up.flatten(1), mid, down.flatten(1))
    return Layout(tensors | {f"{key}.alpha": torch.tensor(2.0)}, {CONV: kernel * 2.0 / 4})


def differences(unet: torch.nn.Module, prefix: str, *, original: bool) -> Layout:
    layout = Layout()
    for seed, name in enumerate((ATTENTION, CONV)):
        module: Any = unet.get_submodule(name)
        weight, bias = random(*module.weight.shape, seed=seed), random(module.weight.shape[0], seed=seed + 10)
        spelled = ORIGINAL[name] if original else name
        key = prefix + (spelled if prefix.endswith(".") else spelled.replace(".", "_"))
        layout.tensors |= {f"{key}.diff": weight, f"{key}.diff_b": bias}
        layout.weights[name], layout.biases[name] = weight, bias
    return layout


def bias_beside_a_product(unet: torch.nn.Module) -> Layout:
    layout = kohya(unet)
    bias = random(unet.get_submodule(CONV).weight.shape[0], seed=9)  # type: ignore[union-attr,misc,arg-type]
    layout.tensors[f"lora_unet_{CONV.replace('.', '_')}.diff_b"] = bias
    layout.biases[CONV] = bias
    return layout


def norms(unet: torch.nn.Module, weight_key: str, bias_key: str, *, original: bool = False) -> Layout:
    layout = Layout()
    for seed, name in enumerate(NORMS):
        size: Any = unet.get_submodule(name).weight.shape  # type: ignore[union-attr]
        layout.weights[name], layout.biases[name] = random(*size, seed=seed), random(*size, seed=seed + 10)
        key = f"lora_unet_{(ORIGINAL[name] if original else name).replace('.', '_')}"
        layout.tensors |= {f"{key}.{weight_key}": layout.weights[name], f"{key}.{bias_key}": layout.biases[name]}
    return layout


def layouts(unet: torch.nn.Module) -> Mapping[str, Layout]:
    return {
        "float8_e4m3fn": kohya(unet, torch.float8_e4m3fn),
        "float8_e5m2": kohya(unet, torch.float8_e5m2),
        "bfloat16": kohya(unet, torch.bfloat16),
        "alpha int32": kohya(unet, alpha=torch.tensor(8, dtype=torch.int32)),
        "alpha int64": kohya(unet, alpha=torch.tensor(8)),
        "ComfyUI, diffusers' names": named(unet, "diffusion_model.", "lora_A", "lora_B"),
        "ComfyUI, original names": named(unet, "diffusion_model.", "lora_down", "lora_up", original=True),
        "OneTrainer": named(unet, "lora_unet.", "lora_down", "lora_up"),
        "rs-LoRA": rank_stabilised(unet),
        "use_scalar": with_scalar(unet),
        "CP decomposition": decomposed(unet),
        "differences": differences(unet, "lora_unet_", original=False),
        "differences, ComfyUI": differences(unet, "diffusion_model.", original=True),
        "a bias beside a product": bias_beside_a_product(unet),
        "norms, LyCORIS": norms(unet, "w_norm", "b_norm"),
        "norms, ComfyUI": norms(unet, "diff", "diff_b", original=True),
    }


def merged(model: torch.nn.Module, layout: Layout) -> torch.nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in layout.weights.items():
            changed.get_submodule(name).weight += WEIGHT * weight  # type: ignore[operator]
        for name, bias in layout.biases.items():
            module: Any = changed.get_submodule(name)
            if module.bias is None:
                module.bias = torch.nn.Parameter(WEIGHT * bias)
            else:
                module.bias += WEIGHT * bias
    return changed


def forward(unet: Any) -> torch.Tensor:
    """Two rows of the UNet."""
    text = random(2, 77, unet.config.cross_attention_dim, seed=21, size=1)
    with torch.inference_mode():
        output: torch.Tensor = unet(random(2, 4, 8, 8, seed=20, size=1), torch.tensor(500), text).sample
    return output


def with_lora(unet: Any, folder: Path) -> torch.Tensor:
    """The same with the LoRA in the first row."""
    model = AdaptedModel(unet, "unet", torch.device("cpu"))
    adapter = model.adapter(LoraFiles(LoraSettings(folder=str(folder))).read("style"), WEIGHT)
    assert adapter is not None
    with model.adapted(model.plan([AdaptedRows(0, 1, [adapter])])), computing(slice(0, 2)):
        return forward(unet)


LAYOUTS = (
    "float8_e4m3fn", "float8_e5m2", "bfloat16", "alpha int32", "alpha int64", "ComfyUI, diffusers' names",
    "ComfyUI, original names", "OneTrainer", "rs-LoRA", "use_scalar", "CP decomposition", "differences",
    "differences, ComfyUI", "a bias beside a product", "norms, LyCORIS", "norms, ComfyUI",
)  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_its_merge(name: str, tmp_path: Path, sd15_pipeline: Any) -> None:
    unet = sd15_pipeline.unet
    layout = layouts(unet)[name]
    write(tmp_path / "style.safetensors", layout.tensors, layout.metadata)
    plain, wanted, found = forward(unet), forward(merged(unet, layout)), with_lora(unet, tmp_path)
    scale = float(wanted.abs().max())
    assert float((wanted[0] - plain[0]).abs().max()) > 0.01 * scale  # it makes a difference
    assert float((found[0] - wanted[0]).abs().max()) <= 1e-4 * scale
    assert torch.equal(found[1], plain[1])
    assert torch.equal(forward(unet), plain)


def test_layers_that_the_model_lacks_are_left_out_and_named(
    tmp_path: Path, sd15_pipeline: Any, caplog: pytest.LogCaptureFixture
) -> None:
    unet = sd15_pipeline.unet
    layout = kohya(unet)
    foreign = {f"lora_unet_foreign.lora_{way}.weight": random(4, 4, seed=1) for way in ("down", "up")}
    write(tmp_path / "style.safetensors", layout.tensors | foreign)
    with caplog.at_level(logging.WARNING):
        found = with_lora(unet, tmp_path)
    wanted = forward(merged(unet, layout))
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-4 * float(wanted.abs().max()))
    assert "LoRA 'style': this model's unet lacks 1 of its 3 layers" in caplog.text
    assert "lora_unet_foreign.lora_down.weight" in caplog.text


def test_a_file_of_foreign_layers_is_refused(tmp_path: Path, sd15_pipeline: Any) -> None:
    tensors = {}
    for index in range(3):
        tensors |= {f"lora_unet_foreign_{index}.lora_{way}.weight": random(4, 4, seed=1) for way in ("down", "up")}
    write(tmp_path / "style.safetensors", kohya(sd15_pipeline.unet).tensors | tensors)
    with pytest.raises(LoraRefused, match=r"this one has no layer lora_unet_foreign_0\.lora_down"):
        with_lora(sd15_pipeline.unet, tmp_path)
    write(tmp_path / "style.safetensors", {"lora_unet_conv_norm_out.w_norm": random(3, seed=1)})
    with pytest.raises(LoraRefused, match=r"conv_norm_out.w_norm changes a weight of shape \(3,\), this model's is"):
        with_lora(sd15_pipeline.unet, tmp_path)


def encode(tiny: Path, folder: Path | None, text: str, inversions: Mapping[str, PromptVectors] | None = None) -> Array:
    """A text's hidden states, with the LoRA of a folder."""
    spec = CheckpointSpec(family="sd15", source=str(tiny))
    files = LoraFiles(LoraSettings(folder=None if folder is None else str(folder)))
    encoders = {"sd15": load_text_encoders(spec, torch.device("cpu"), torch.float32)}
    encoder = PromptEncoder(encoders, batch=2, loras=files, inversions=inversions)
    loras = () if folder is None else files.of_text([Lora("style", WEIGHT)])
    return encoder.encode([PromptText("sd15", text, loras=loras)])[0].hidden_states


def test_norms_of_a_text_encoder_and_a_projection_that_nothing_uses(
    tmp_path: Path, tiny_sd15: Path, sd15_pipeline: Any, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = sd15_pipeline.text_encoder
    layout = Layout()
    for seed, name in enumerate(("encoder.layers.0.layer_norm1", "final_layer_norm")):
        size = encoder.get_submodule(name).weight.shape
        layout.weights[name], layout.biases[name] = random(*size, seed=seed), random(*size, seed=seed + 5)
        key = f"lora_te_text_model_{name.replace('.', '_')}"
        layout.tensors |= {f"{key}.w_norm": layout.weights[name], f"{key}.b_norm": layout.biases[name]}
    projection = {f"lora_te_text_projection.lora_{way}.weight": random(16, 16, seed=7) for way in ("down", "up")}
    write(tmp_path / "style.safetensors", layout.tensors | projection)
    found = encode(tiny_sd15, tmp_path, "a cat")
    assert "lacks 1 of its 3 layers, which have no effect: lora_te_text_projection.lora_down.weight" in caplog.text
    pipeline = type(sd15_pipeline)(
        **{**sd15_pipeline.components, "text_encoder": merged(encoder, layout)}, requires_safety_checker=False
    )
    wanted = pipeline.encode_prompt("a cat", "cpu", 1, False)[0][0].detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["clip_l", "emb_params", "string_to_param.*"])
def test_a_bundled_embedding_counts_in_texts_with_the_lora(
    kind: str, tmp_path: Path, tiny_sd15: Path, sd15_pipeline: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = random(2, sd15_pipeline.text_encoder.config.hidden_size, seed=3)
    bundle = {f"bundle_emb.tabby.{kind}": vectors, "bundle_emb.tabby.clip_l_out": vectors}
    write(tmp_path / "style.safetensors", kohya(sd15_pipeline.unet).tensors | bundle)
    wanted = encode(tiny_sd15, None, "a tabby", {"tabby": PromptVectors("tabby", (vectors.numpy(),))})
    found = encode(tiny_sd15, tmp_path, "a tabby")
    assert found.tobytes() == wanted.tobytes()
    assert found.tobytes() != encode(tiny_sd15, None, "a tabby").tobytes()
    assert "LoRA 'style': left out: bundle_emb.tabby.clip_l_out" in caplog.text
