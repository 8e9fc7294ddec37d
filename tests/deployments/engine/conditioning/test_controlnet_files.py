"""Which ControlNets a folder has, and what is refused of it before anything is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deployments.engine.conditioning.controlnet_files import ControlnetFolder
from deployments.engine.errors import CheckpointError, ControlnetRefused
from tests.controlnets import random_controlnet, write_controlnet


@pytest.fixture(scope="module")
def folder(sd15_pipeline: Any, sdxl_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("controlnets")
    edges = random_controlnet(sd15_pipeline.unet, 1)
    write_controlnet(made / "edges", edges)
    write_controlnet(made / "half", edges, variant="fp16")
    write_controlnet(made / "xl", random_controlnet(sdxl_pipeline.unet, 2))
    save_file(edges.state_dict(), made / "file.safetensors")
    save_file({"lora_unet_conv_in.alpha": torch.zeros(1)}, made / "lora.safetensors")
    (made / "pickle.pth").write_bytes(b"\x80\x02")
    (made / "disguised.safetensors").write_bytes(b"\x80\x02" + bytes(100))
    cut = (made / "file.safetensors").read_bytes()[:-1]
    (made / "cut.safetensors").write_bytes(cut)
    (made / "notes.txt").write_text("")
    shutil.copytree(made / "edges", made / "old")
    (made / "old" / "diffusion_pytorch_model.safetensors").rename(made / "old" / "diffusion_pytorch_model.bin")
    for name, changes in {
        "adapter": {"_class_name": "T2IAdapter"},
        "coded": {"auto_map": {"AutoModel": "code.Model"}},
        "other": {"addition_embed_type": "image"},
    }.items():
        shutil.copytree(made / "edges", made / name)
        config = made / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return made


def test_names(folder: Path) -> None:
    names = ControlnetFolder(str(folder)).names()
    assert {"edges", "half", "xl", "file"} <= set(names)
    assert not {"pickle", "notes"} & set(names)
    assert list(names) == sorted(names)
    assert ControlnetFolder(None).names() == ()
    with pytest.raises(CheckpointError, match="expected a folder of ControlNets"):
        ControlnetFolder(str(folder / "nothing"))


def test_what_is_found(folder: Path) -> None:
    there = ControlnetFolder(str(folder))
    edges, half, xl, file = (there.find(name) for name in ("edges", "half", "xl", "file"))
    assert edges.families == half.families == file.families == ("sd15", "sd2")
    assert xl.families == ("sdxl",)
    assert edges.numbers == half.numbers == file.numbers > 10_000
    assert file.config is None
    assert there.find_for("xl", "sdxl") == xl


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing", "no ControlNet named 'nothing'"),
        ("../edges", r"no ControlNet named '\.\./edges'"),
        ("..", "no ControlNet named"),
        ("a" * 1000, "no ControlNet named 'aaa"),
        ("pickle", r"is a \.pth file: a pickle can run code"),
        ("disguised", "a pickle in spite of its name"),
        ("old", "pickles can run code"),
        ("cut", "cut short or damaged"),
        ("lora", "expected the tensors of a ControlNet"),
        ("adapter", "expected a ControlNetModel, found 'T2IAdapter'"),
        ("coded", "auto_map, which can run or fetch code"),
        ("other", "addition_embed_type 'image'"),
        ("xl", "is for sdxl models, not for sd15"),
    ],
)
def test_what_is_refused(folder: Path, name: str, why: str) -> None:
    with pytest.raises(ControlnetRefused, match=why) as refused:
        ControlnetFolder(str(folder)).find_for(name, "sd15")
    assert refused.value.field == "controlnets"
    assert str(folder) not in refused.value.message
    assert len(refused.value.message) < 400
