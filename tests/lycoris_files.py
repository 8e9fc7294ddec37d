"""Adapters of every kind that LyCORIS trains, random ones: its own modules write the files and merge the weights."""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lycoris.modules import FullModule, IA3Module, LoConModule, LohaModule, LokrModule, NormModule
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear

from tests.loras import KOHYA, write

Make = Callable[[Any], Any]  # a module for a layer
Modules = Mapping[str, Any]  # LyCORIS' modules by the layers' names


def _product(cls: Any, **options: Any) -> Make:
    """`rank` 2 and alpha the rank, unless the options say something else."""
    rank = options.pop("rank", 2)

    def make(layer: Any) -> Any:
        alpha = options.get("alpha", rank)
        return cls("", layer, 1.0, lora_dim=rank, **{"alpha": alpha, "use_tucker": False, **options})

    return make


KINDS: dict[str, Make] = {
    "LoCon": _product(LoConModule, alpha=1),
    "LoCon, Tucker": _product(LoConModule, alpha=1, use_tucker=True),
    "LoHa": _product(LohaModule, rank=1),
    "LoHa, rank 2": _product(LohaModule),
    "LoHa, large rank": _product(LohaModule, rank=9),
    "LoHa, Tucker": _product(LohaModule, use_tucker=True),
    "LoHa, Tucker, large rank": _product(LohaModule, rank=9, use_tucker=True),
    "LoKr": _product(LokrModule, full_matrix=True),
    "LoKr, factor 2": _product(LokrModule, factor=2, rank=1),
    "LoKr, both decomposed": _product(LokrModule, factor=4, rank=1, decompose_both=True),
    "LoKr, Tucker": _product(LokrModule, factor=2, rank=1, use_tucker=True),
    "LoKr, unbalanced": _product(LokrModule, factor=2, rank=1, unbalanced_factorization=True),
    "DoRA": _product(LoConModule, alpha=1, weight_decompose=True),
    "DoRA on inputs": _product(LoConModule, weight_decompose=True, wd_on_out=False),
    "DoRA, Tucker": _product(LoConModule, weight_decompose=True, use_tucker=True),
    "DoRA of a LoHa": _product(LohaModule, weight_decompose=True),
    "DoRA of a LoKr": _product(LokrModule, factor=2, rank=1, weight_decompose=True),
    "DoRA of a LoKr on inputs": _product(LokrModule, factor=2, rank=1, weight_decompose=True, wd_on_out=False),
    "(IA)3": lambda layer: IA3Module("", layer, 1.0),
    "(IA)3 on inputs": lambda layer: IA3Module("", layer, 1.0, train_on_input=True),
    "full": lambda layer: FullModule("", layer, 1.0),
    "norms": lambda layer: NormModule("", layer, 1.0),
}
"""By the names of tests."""


def modules(model: torch.nn.Module, layers: str, make: Make, *, seed: int, size: float = 0.3) -> dict[str, Any]:
    """Random modules for all layers whose names end so; they change weights by about `size` of them."""
    torch.manual_seed(seed)
    kinds = (GroupNorm, LayerNorm) if make is KINDS["norms"] else (Linear, Conv2d)
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, kinds) and re.search(rf"(^|\.)({layers})$", name):
            found[name] = _filled(make(layer), size)
    assert found, layers
    return found


@torch.no_grad()
def _filled(module: Any, size: float) -> Any:
    own = module.org_module[0]
    if isinstance(module, NormModule | FullModule | IA3Module):
        for parameter in module.parameters():
            scale = 1.0 if isinstance(module, IA3Module | NormModule) else float(own.weight.std())
            parameter.copy_(size * scale * torch.randn_like(parameter))
        return module
    for name, parameter in module.named_parameters():
        if name == "dora_scale":
            parameter.mul_(1 + size * torch.randn_like(parameter))
        else:
            parameter.copy_(torch.randn_like(parameter))
    factor = next(of for name, of in module.named_parameters() if re.fullmatch(r"lora_up.weight|.*_w1(_a)?", name))
    factor.mul_(size * float(own.weight.std()) / float(module.get_diff_weight(1.0)[0].std()))
    return module


def tensors(of: Modules, prefix: str = "", sign: str = ".") -> dict[str, torch.Tensor]:
    """As LyCORIS writes them; `prefix` and `sign` as of the trainer's names for layers."""
    found = {}
    for name, module in of.items():
        layer = prefix + name.replace(".", sign)
        state = module.state_dict()
        if isinstance(module, FullModule):  # subtracts what only a layer that it was put into has
            state = {
                key: tensor for key, tensor in (("diff", module.weight), ("diff_b", module.bias)) if tensor is not None
            }
        found |= {f"{layer}.{key}": tensor.detach().clone() for key, tensor in state.items()}
    return found


def write_lycoris(path: Path, parts: Mapping[str, Modules]) -> Path:
    """As kohya's scripts name layers, diffusers' names for the UNet's; parts as in tests/loras.py."""
    together: dict[str, torch.Tensor] = {}
    for part, of in parts.items():
        outer = KOHYA[part] + ("" if part == "unet" or next(iter(of)).startswith("text_model") else "text_model_")
        together |= tensors(of, outer, "_")
    return write(path, together)


@torch.no_grad()
def merged(model: torch.nn.Module, *worn: tuple[Modules, float]) -> torch.nn.Module:
    """A copy of the model with LyCORIS' merges in its weights.

    The change at a strength is that at 1 times the strength: so merge A1111 and ComfyUI; LyCORIS' own DoRA adds all of
    the delta whatever the strength is.
    """
    changed = copy.deepcopy(model)
    for of, strength in worn:
        for name, module in of.items():
            layer: Any = changed.get_submodule(name)
            own: Any = model.get_submodule(name)
            alone = copy.deepcopy(own)
            merging = copy.copy(module)
            merging.org_module = [alone]
            merging.merge_to(1.0)
            layer.weight += strength * (alone.weight - own.weight)
            if alone.bias is not None:
                before = 0 if own.bias is None else own.bias
                layer.bias = torch.nn.Parameter(
                    (0 if layer.bias is None else layer.bias) + strength * (alone.bias - before)
                )
    return changed


@torch.no_grad()
def trained(model: torch.nn.Module, of: Modules, strength: float) -> torch.nn.Module:
    """A copy of the model with LyCORIS' modules in their layers, as they are trained."""
    changed = copy.deepcopy(model)
    for name, module in of.items():
        wearing = copy.copy(module)
        wearing.org_module, wearing.multiplier = [changed.get_submodule(name)], strength
        wearing.apply_to()
    return changed
