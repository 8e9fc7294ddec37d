"""LoRA files: the formats that are read, what is refused with the file's name, which stay in memory."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from deployments.engine.adapters.delta import Product
from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.checkpoints.weight_folder import FolderContents
from deployments.engine.config import LoraSettings
from deployments.engine.errors import CheckpointError, LoraRefused
from tests.loras import write

Tensors = Mapping[str, torch.Tensor]

DOWN, UP = torch.randn(2, 8), torch.randn(4, 2)
UNET, TEXT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1", "text_model.encoder.layers.0"
JOINED = UNET.replace(".", "_")


def files(folder: Path, resident_mib: int = 512) -> LoraFiles:
    return LoraFiles(LoraSettings(folder=str(folder), resident_mib=resident_mib))


def pair(name: str, down: str, up: str) -> dict[str, torch.Tensor]:
    return {f"{name}{down}": DOWN, f"{name}{up}": UP}


FORMATS: dict[str, dict[str, torch.Tensor]] = {
    "kohya": pair(f"lora_unet_{JOINED}_to_out_0", ".lora_down.weight", ".lora_up.weight")
    | pair("lora_te_text_model_encoder_layers_0_self_attn_out_proj", ".lora_down.weight", ".lora_up.weight"),
    "peft": pair(f"unet.{UNET}.to_out.0", ".lora_A.weight", ".lora_B.weight")
    | pair(f"text_encoder.{TEXT}.self_attn.out_proj", ".lora_A.weight", ".lora_B.weight"),
    "peft itself": pair(f"base_model.model.{UNET}.to_out.0", ".lora_A.default.weight", ".lora_B.default.weight")
    | pair(f"text_encoder.{TEXT.removeprefix('text_model.')}.self_attn.out_proj", ".lora_A.weight", ".lora_B.weight"),
    "OneTrainer": pair(f"lora_unet.{UNET}.to_out.0", ".lora_down.weight", ".lora_up.weight")
    | pair(f"lora_te.{TEXT}.self_attn.out_proj", ".lora_down.weight", ".lora_up.weight"),
    "ComfyUI": pair(f"diffusion_model.{UNET}.to_out.0", ".lora_A.weight", ".lora_B.weight")
    | pair(f"text_encoders.clip_l.transformer.{TEXT}.self_attn.out_proj", ".lora_A.weight", ".lora_B.weight"),
    "diffusers 0.2x": pair(f"unet.{UNET}.to_out.0", ".lora.down.weight", ".lora.up.weight")
    | pair(f"text_encoder.{TEXT}.self_attn.out_proj", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "diffusers 0.1x": pair(f"unet.{UNET}.processor.to_out", "_lora.down.weight", "_lora.up.weight")
    | pair(f"text_encoder.{TEXT}.self_attn.to_out", "_lora.down.weight", "_lora.up.weight"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(name: str, tmp_path: Path) -> None:
    write(tmp_path / "style.safetensors", FORMATS[name])
    read = files(tmp_path).read("style")
    assert {part: list(layers) for part, layers in read.updates.items()} == {
        "unet": [f"{JOINED}_to_out_0"],
        "text_encoder": ["text_model_encoder_layers_0_self_attn_out_proj"],
    }
    assert read.changes_text
    for layers in read.updates.values():
        for update in layers.values():
            ((product, scale),) = update.deltas
            assert isinstance(product, Product)
            assert torch.equal(product.down, DOWN)
            assert torch.equal(product.up, UP)
            assert scale == 1.0  # a file without alphas means the matrices as they are


def test_alphas_of_the_file_and_of_peft_s_settings(tmp_path: Path) -> None:
    kohya = pair("lora_unet_a", ".lora_down.weight", ".lora_up.weight") | {"lora_unet_a.alpha": torch.tensor(1.0)}
    write(tmp_path / "kohya.safetensors", kohya)
    settings = json.dumps({"unet.r": 2, "unet.lora_alpha": 6, "unet.use_dora": False})
    peft = pair("unet.a", ".lora_A.weight", ".lora_B.weight")
    write(tmp_path / "peft.safetensors", peft, {"lora_adapter_metadata": settings})
    read = files(tmp_path)
    assert read.read("kohya").updates["unet"]["a"].deltas[0].scale == 0.5
    assert read.read("peft").updates["unet"]["a"].deltas[0].scale == 3.0
    assert not read.read("peft").changes_text


LOHA = {f"lora_unet_a.hada_w{number}_{side}": tensor for number in (1, 2) for side, tensor in (("a", UP), ("b", DOWN))}
ODD: list[tuple[Tensors, dict[str, str], str]] = [
    ({"lora_unet_a.hada_w1_a": UP}, {}, "hada_w1_a is alone: this layer needs hada_w1_b"),
    ({**FORMATS["kohya"], "lora_unet_a.dora_scale": DOWN}, {}, "lora_unet_a.dora_scale is alone"),
    ({"lora_unet_a.hada_w1_a": UP, "lora_unet_a.hada_w1_b": DOWN}, {}, "hada_w1_a is alone: .* needs hada_w2_b"),
    (LOHA | {"lora_unet_a.hada_w2_b": DOWN[:, :4]}, {}, r"hada_w2_b has shape \(2, 4\), .* fit .*hada_w1_b, \(2, 8\)"),
    (LOHA | {"lora_unet_a.hada_w1_b": DOWN[:1]}, {}, r"hada_w1_b has shape \(1, 8\), .* fit .*hada_w1_a, \(4, 2\)"),
    (LOHA | {"lora_unet_a.hada_t1": torch.ones(2, 2, 3, 3)}, {}, "hada_w1_b has shape .* fit .*hada_w1_a"),
    ({"lora_unet_a.lokr_w1": UP}, {}, "lokr_w1 is alone: this layer needs lokr_w2_b"),
    ({"lora_unet_a.lokr_w1": UP[0], "lora_unet_a.lokr_w2": DOWN}, {}, "lokr_w1 has shape .*, expected two dimensions"),
    ({"lora_unet_a.weight": DOWN, "lora_unet_b.on_input": torch.tensor(1)}, {}, "lora_unet_a.weight is unknown"),
    ({"lora_unet_a.on_input": torch.tensor(1)}, {}, "lora_unet_a.on_input is alone"),
    ({"lora_unet_a.oft_blocks": torch.ones(2, 4, 4)}, {}, r"oft_blocks is unknown: .* \(hada_\*\), .* are read"),
    ({"lora_unet_a.a1.weight": UP}, {}, "lora_unet_a.a1.weight is unknown"),
    ({"unet.a.ia3_l": UP}, {}, "unet.a.ia3_l is unknown"),
    ({**FORMATS["peft"], "unet.a.lora_B.bias": DOWN}, {}, "unet.a.lora_B.bias is unknown"),
    ({"model.diffusion_model.out.2.weight": DOWN}, {}, "model.diffusion_model.out.2.weight is unknown"),
    ({"lora_unet_a.lora_down.weight": DOWN}, {}, "lora_unet_a.lora_down.weight is alone"),
    ({"lora_unet_a.alpha": torch.tensor(1.0)}, {}, "lora_unet_a.alpha is alone"),
    (
        {"lora_unet_a.lora_down.weight": DOWN, "lora_unet_a.lora_up.weight": UP.T.contiguous()},
        {},
        "doesn't fit .*lora_up",
    ),
    ({"lora_unet_a.lora_down.weight": DOWN[0], "lora_unet_a.lora_up.weight": UP}, {}, "doesn't fit .*lora_up"),
    ({"lora_unet_a.lora_down.weight": DOWN.long(), "lora_unet_a.lora_up.weight": UP}, {}, "int64 values"),
    ({"lora_unet_a.lora_down.weight": DOWN / 0, "lora_unet_a.lora_up.weight": UP}, {}, "finite numbers"),
    (
        pair("lora_unet_a", ".lora_down.weight", ".lora_up.weight") | {"lora_unet_a.alpha": torch.ones(2)},
        {},
        "isn't a single number",
    ),
    (
        pair("unet.a.b", ".lora_A.weight", ".lora_B.weight") | pair("lora_unet_a_b", ".lora_down.weight", ".x"),
        {},
        "means the same as|is unknown",
    ),
    (FORMATS["peft"], {"lora_adapter_metadata": '{"unet.use_dora": true}'}, "use_dora needs lora_magnitude_vector"),
    (FORMATS["peft"], {"lora_adapter_metadata": '{"unet.alpha_pattern": {"a": 1}}'}, "kind of LoRA"),
    (FORMATS["peft"], {"lora_adapter_metadata": '{"unet.use_rslora": true}'}, "needs lora_alpha"),
    ({**FORMATS["kohya"], f"lora_unet_{JOINED}_to_out_0.lora_mid.weight": DOWN}, {}, "lora_mid.weight has shape"),
    ({"bundle_emb.cat.clip_l": DOWN}, {}, "it changes no layer"),
    (FORMATS["peft"], {"lora_adapter_metadata": "[]"}, "lora_adapter_metadata can't be read"),
]


@pytest.mark.parametrize(("tensors", "metadata", "reason"), ODD)
def test_what_is_no_lora(tensors: Tensors, metadata: dict[str, str], reason: str, tmp_path: Path) -> None:
    write(tmp_path / "odd.safetensors", tensors, metadata)
    with pytest.raises(LoraRefused, match=reason) as caught:
        files(tmp_path).read("odd")
    assert "LoRA 'odd'" in caught.value.message
    assert caught.value.field == "loras"


def test_files_that_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    write(tmp_path / "outside.safetensors", FORMATS["kohya"])
    whole = write(folder / "whole.safetensors", FORMATS["kohya"])
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:-7])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "disguised.safetensors").write_bytes(b"\x80\x04K\x01.")
    (folder / "old.ckpt").write_bytes(b"\x80\x04K\x01.")
    (folder / "folder.safetensors").mkdir()
    reasons = {
        "cut": "cut short",
        "empty": "cut short",
        "disguised": "a pickle in spite of its name",
        "old": "is a .ckpt file: a pickle can run code",
        "folder": "no LoRA named 'folder'",
        "nothing": "no LoRA named 'nothing'",
        "../outside": "no LoRA named '../outside'",
        str(tmp_path / "outside"): "no LoRA named",
        "..": "no LoRA named",
        "a\nb": r"no LoRA named 'a\\nb'",
        "whole.safetensors": "no LoRA named",
    }
    for name, reason in reasons.items():
        with pytest.raises(LoraRefused, match=reason) as caught:
            files(folder).read(name)
        assert str(folder) not in caught.value.message
    assert LoraFolder(str(folder)).names() == ("whole",)
    with pytest.raises(LoraRefused, match="no LoRA named"):
        LoraFiles(LoraSettings()).read("whole")
    with pytest.raises(CheckpointError, match="expected a folder"):
        LoraFolder(str(tmp_path / "nowhere"))
    assert LoraFolder(None).names() == ()


def test_a_suffix_in_capitals(tmp_path: Path) -> None:
    write(tmp_path / "style.SafeTensors", FORMATS["kohya"])
    (tmp_path / "style.pt").write_bytes(b"\x80\x04K\x01.")
    assert LoraFolder(str(tmp_path)).contents() == FolderContents(("style",), {})
    assert files(tmp_path).read("style").updates.keys() == {"unet", "text_encoder"}


def test_subfolders(tmp_path: Path) -> None:
    for folder in ("people/alice", "styles", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path / "people" / "alice" / "face.safetensors", FORMATS["kohya"])
    write(tmp_path / "styles" / "ink.safetensors", FORMATS["peft"])
    (tmp_path / "people" / "alice" / "ink.safetensors").write_bytes(b"")
    (tmp_path / "ink.pt").write_bytes(b"\x80\x04K\x01.")
    write(tmp_path / ".hidden" / "secret.safetensors", FORMATS["kohya"])
    (tmp_path / "again").symlink_to(tmp_path)
    assert LoraFolder(str(tmp_path)).contents() == FolderContents(("face", "ink"), {})
    assert LoraFolder(str(tmp_path)).find("ink") == tmp_path / "styles" / "ink.safetensors"
    assert files(tmp_path).read("face").updates.keys() == {"unet", "text_encoder"}
    for name in ("secret", "styles", "styles/ink"):
        with pytest.raises(LoraRefused, match="no LoRA named"):
            files(tmp_path).read(name)


def test_another_kind_of_adapter_is_skipped_by_its_keys(tmp_path: Path) -> None:
    write(tmp_path / "oft.safetensors", {"lora_unet_a.oft_diag": DOWN})
    write(tmp_path / "style.safetensors", FORMATS["peft"])
    contents = LoraFolder(str(tmp_path)).contents()
    assert contents.names == ("style",)
    assert "LoRA 'oft' can't be read: lora_unet_a.oft_diag is unknown" in contents.skipped["oft"]


def test_those_read_last_stay_in_memory(tmp_path: Path) -> None:
    big = {"lora_unet_a.lora_down.weight": torch.zeros(1, 100_000), "lora_unet_a.lora_up.weight": torch.zeros(4, 1)}
    for name in "abcd":
        write(tmp_path / f"{name}.safetensors", big)  # 0.4 MB: two of them fit into 1 MiB
    shelf = files(tmp_path, resident_mib=1)
    first = shelf.read("a")
    shelf.read("b")
    assert shelf.read("a") is first
    shelf.read("c")
    assert shelf.resident == ("a", "c")
    assert shelf.read("a") is first
    shelf.read("b")
    assert shelf.resident == ("a", "b")
    write(tmp_path / "e.safetensors", big, {"made": "again"})
    (tmp_path / "e.safetensors").replace(tmp_path / "a.safetensors")
    again = shelf.read("a")
    assert again is not first
    assert again.hash != first.hash
    assert files(tmp_path, resident_mib=0).resident == ()
