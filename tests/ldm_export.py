"""Writes a diffusers folder as a single file in the layout of the original Stable Diffusion code.

Published checkpoints are such files. The renaming is written down here anew, so that it tests the one that loads.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES

Tensors = dict[str, torch.Tensor]
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_CONTROLNET_ENDS = {
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def export_ldm(folder: Path, path: Path) -> Path:
    """Write the UNet, the VAE and the text encoders of a diffusers folder to one .safetensors file."""
    parts = {name: _weights(folder / name) for name in PARTS if (folder / name).is_dir()}
    first = folder / "text_encoder" / "config.json"
    tensors = ldm_tensors(parts, open_clip=first.is_file() and json.loads(first.read_text())["hidden_act"] == "gelu")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def ldm_tensors(parts: Mapping[str, Tensors], *, open_clip: bool) -> Tensors:
    """The tensors of a single file, of those of a checkpoint's models by their folders.

    `open_clip`: whether the text encoder, if it is the only one, is OpenCLIP's, as SD 2's is.
    """
    tensors = {f"model.diffusion_model.{k}": v for k, v in _unet(parts["unet"]).items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in vae_to_ldm(parts["vae"]).items()}
    first, second = parts.get("text_encoder"), parts.get("text_encoder_2")
    if first is not None and second is not None:
        tensors |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in _clip(first).items()}
        tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in _open_clip(second).items()}
    elif second is not None:
        tensors |= {f"conditioner.embedders.0.model.{k}": v for k, v in _open_clip(second).items()}
    elif first is not None and open_clip:
        tensors |= {f"cond_stage_model.model.{k}": v for k, v in _whole_open_clip(first).items()}
    elif first is not None:
        tensors |= {f"cond_stage_model.transformer.{k}": v for k, v in _clip(first).items()}
    # what training scripts leave in
    tensors["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    tensors["model_ema.decay"] = torch.tensor(0.9999)
    return tensors


def write_hollow(path: Path, family: FamilyName, in_channels: int = 4, **extra: torch.Tensor) -> Path:
    """Write a single file of the family's published shapes whose weights are all 0: a hole, which takes no space."""
    folder = FAMILIES[family].published
    configs = {
        name: json.loads((folder / name / "config.json").read_text()) for name in PARTS if (folder / name).is_dir()
    }
    with init_empty_weights():
        models = {
            "unet": UNet2DConditionModel.from_config(configs["unet"] | {"in_channels": in_channels}),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            **{
                name: getattr(transformers, config["architectures"][0])(CLIPTextConfig(**config))
                for name, config in configs.items()
                if name.startswith("text_encoder")
            },
        }
    parts = {name: dict(model.state_dict()) for name, model in models.items()}
    encoder = FAMILIES[family].text_encoders[0]
    entries, end = {}, 0
    for name, tensor in (ldm_tensors(parts, open_clip=encoder.open_clip) | extra).items():
        start, end = end, end + 2 * tensor.numel()
        entries[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


def vae_to_ldm(tensors: Tensors) -> Tensors:
    """A VAE's tensors under the original code's names."""
    renamed = {}
    for name, tensor in tensors.items():
        new = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", name)
        new = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", new)
        new = re.sub(
            r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}", new
        )
        new = re.sub(r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1")
            for ours, theirs in _VAE_ATTENTION.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]  # the original attention is made of 1 x 1 convolutions
        renamed[new] = tensor
    return renamed


def export_controlnet(controlnet: torch.nn.Module, path: Path) -> Path:
    """Write a ControlNet's weights to one .safetensors file, as its inventors published theirs."""
    renamed, copied = {}, {}
    for name, tensor in controlnet.state_dict().items():
        new = re.sub(r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", name)
        new = re.sub(
            r"^controlnet_cond_embedding\.blocks\.(\d)\.", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}.", new
        )
        for ours, theirs in _CONTROLNET_ENDS.items():
            new = new.replace(ours, theirs)
        if new == name:
            copied[name] = tensor
        else:
            renamed[new] = tensor
    tensors = {f"control_model.{name}": tensor.contiguous() for name, tensor in (renamed | _unet(copied)).items()}
    save_file(tensors, path)
    return path


def _unet(tensors: Tensors) -> Tensors:
    layers = 1 + max(int(m[1]) for name in tensors if (m := re.match(r"down_blocks\.0\.resnets\.(\d)", name)))
    attended = {m[1] for name in tensors if (m := re.match(r"up_blocks\.(\d)\.attentions", name))}

    def input_block(level: str, layer: int) -> str:
        return f"input_blocks.{1 + int(level) * (layers + 1) + layer}"

    def output_block(level: str, layer: int) -> str:
        return f"output_blocks.{int(level) * (layers + 1) + layer}"

    rules = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", lambda m: input_block(m[1], int(m[2])) + ".0"),
        (r"down_blocks\.(\d)\.attentions\.(\d)", lambda m: input_block(m[1], int(m[2])) + ".1"),
        (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: input_block(m[1], layers) + ".0.op"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: output_block(m[1], int(m[2])) + ".0"),
        (r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: output_block(m[1], int(m[2])) + ".1"),
        (
            r"up_blocks\.(\d)\.upsamplers\.0\.conv",
            lambda m: output_block(m[1], layers) + (".2.conv" if m[1] in attended else ".1.conv"),
        ),
        (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"mid_block\.attentions\.0", lambda m: "middle_block.1"),
    ]
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for ours, theirs in _UNET_ENDS.items():
            if name.startswith(ours + "."):
                new = name.replace(ours, theirs)
        if ".resnets." in name:
            for ours, theirs in _RESNET.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
        for pattern, target in rules:
            new = re.sub("^" + pattern, target, new)
        renamed[new] = tensor
    return renamed


def _clip(tensors: Tensors) -> Tensors:
    renamed = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return renamed | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def _open_clip(tensors: Tensors) -> Tensors:
    renamed: Tensors = {"logit_scale": torch.tensor(4.6)}
    for name, tensor in tensors.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            renamed["text_projection"] = tensor.T
        elif name == "embeddings.position_embedding.weight":
            renamed["positional_embedding"] = tensor
        elif match := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", name):
            block = f"transformer.resblocks.{match[1]}"
            part = match[2].removeprefix("self_attn.")
            if part in ("q_proj", "k_proj", "v_proj"):
                if part == "q_proj":
                    parts = [tensors[_part(name, p, tensors)] for p in ("q_proj", "k_proj", "v_proj")]
                    renamed[f"{block}.attn.in_proj_{match[3]}"] = torch.cat(parts)
            else:
                renamed[f"{block}.{_OPEN_CLIP[match[2]]}.{match[3]}"] = tensor
        else:
            new = name.replace("embeddings.token_embedding", "token_embedding")
            renamed[new.replace("final_layer_norm", "ln_final")] = tensor
    return renamed


def _whole_open_clip(tensors: Tensors) -> Tensors:
    """SD2's text encoder as OpenCLIP has it, with the last layer and the projection that nothing uses."""
    renamed = _open_clip(tensors)
    last = {name: tensor for name, tensor in renamed.items() if name.startswith("transformer.resblocks.0.")}
    renamed |= {name.replace("resblocks.0.", "resblocks.23."): 2 * tensor for name, tensor in last.items()}
    channels = len(renamed["ln_final.weight"])
    return renamed | {"text_projection": torch.eye(channels)}


def _part(name: str, part: str, tensors: Tensors) -> str:
    new = name.replace("q_proj", part)
    return new if new in tensors else "text_model." + new


def _weights(folder: Path) -> Tensors:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)
