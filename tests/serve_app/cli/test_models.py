"""`darkroom models`: the catalogue of a service; checkpoints, pulled from a hub and verified."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

from serve_app.cli.config import read_settings
from serve_app.config.hub_checkpoints import needs
from tests.serve_app.cli.command_line import COMMAND, ROOT, config_with, darkroom, darkroom_beside, document
from tests.serve_app.hub import hub


async def test_lists_the_catalogue_of_a_service(url: str) -> None:
    result = await darkroom_beside("models", "list", "--url", url)
    assert result.exit_code == 0
    header, first, second = [line.split() for line in result.stdout.splitlines()]
    assert header[:2] == ["MODEL", "FAMILY"]
    assert first[:4] == ["demo-sd15", "(default)", "sd15", "256x256"]
    assert second[:6] == ["demo-sdxl", "sdxl", "256x256", "25", "euler_a", "demo-sdxl-refiner"]
    answer = document(await darkroom_beside("models", "list", "--url", url, "--json"))
    assert [model["name"] for model in answer["models"]] == ["demo-sd15", "demo-sdxl"]


def test_the_default_configuration_needs_nothing_of_the_hub(tmp_path: Path) -> None:
    result = darkroom("models", "pull", config_with(tmp_path), "--json")
    assert (result.exit_code, document(result)) == (0, {"pulled": []})
    assert "nothing to download" in result.stderr


def test_the_gpu_configuration_needs_what_its_stages_load() -> None:
    needed = needs(read_settings(ROOT / "serve_config.gpu.yaml"), None)
    found = {(name, one.repository.split("/")[1], one.folders) for name, of_name in needed.items() for one in of_name}
    assert found == {
        ("sd15", "stable-diffusion-v1-5", ("unet", "vae")),
        ("sd15", "stable-diffusion-v1-5", ("text_encoder",)),
        ("sdxl", "stable-diffusion-xl-base-1.0", ("unet",)),
        ("sdxl", "stable-diffusion-xl-base-1.0", ("text_encoder", "text_encoder_2")),
        ("sdxl", "sdxl-vae-fp16-fix", ("", "vae")),
        ("sdxl-refiner", "stable-diffusion-xl-refiner-1.0", ("unet",)),
        ("sdxl-refiner", "sdxl-vae-fp16-fix", ("", "vae")),
        ("safety layers", "nsfw_image_detection", ("",)),
    }


def _in_a_process(cache: Path, endpoint: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """With a cache of its own: huggingface_hub reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cache, env=environment, check=False, capture_output=True, text=True)


def test_what_is_pulled_is_what_the_loader_reads(
    tmp_path: Path, tiny_sd15: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = shutil.copytree(tiny_sd15, tmp_path / "hub" / "someone" / "tiny-sd15")
    shutil.copytree(tiny_vit, tmp_path / "hub" / "someone" / "tiny-vit")
    # the UNet in a variant, the others in none; and what a hub has besides
    unet = repository / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copyfile(unet, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    for pickle in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "v1-5.ckpt"):
        (repository / pickle).write_bytes(b"\x80\x04")
    (repository / "v1-5-pruned.safetensors").write_bytes(b"a single file beside it")
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    settings: dict[str, Any] = config["applications"][0]["args"]
    settings["models"] = {"tiny": {"family": "sd15", "source": "someone/tiny-sd15", "variant": "fp16"}}
    settings["default_model"] = "tiny"
    del settings["openai"]  # its aliases are of the demo models
    settings["safety"]["classifier"] = "someone/tiny-vit"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    cache = tmp_path / "cache"
    cache.mkdir()

    with hub(tmp_path / "hub") as (endpoint, sent):
        lacking = _in_a_process(cache, endpoint, "models", "verify", path, "--json")
        assert lacking.returncode == 1, lacking.stderr
        assert [part["ok"] for part in json.loads(lacking.stdout)["verified"]] == [False, False, False]
        assert sent == []

        pulled = _in_a_process(cache, endpoint, "models", "pull", path, "--json")
        assert pulled.returncode == 0, pulled.stderr
        assert {one["repository"] for one in json.loads(pulled.stdout)["pulled"]} == {
            "someone/tiny-sd15",
            "someone/tiny-vit",
        }
        weights = {name.removeprefix("someone/") for name in sent if not name.endswith((".json", ".txt"))}
        assert weights == {
            "tiny-sd15/unet/diffusion_pytorch_model.fp16.safetensors",
            "tiny-sd15/vae/diffusion_pytorch_model.safetensors",
            "tiny-sd15/text_encoder/model.safetensors",
            "tiny-vit/model.safetensors",
        }
        assert len(sent) == len(set(sent))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    verified = darkroom("models", "verify", path, "--json")
    assert verified.exit_code == 0, verified.output
    assert [part["ok"] for part in document(verified)["verified"]] == [True, True, True]


def test_a_hub_that_can_not_be_reached(tmp_path: Path) -> None:
    config = config_with(tmp_path, ("source: package:demo_models/demo-sd15\n", "source: someone/nothing\n"))
    result = darkroom("models", "pull", config, "--model", "demo-sd15")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: someone/nothing: " in result.stderr
    assert "HF_HUB_OFFLINE=1" in result.stderr


def test_verifies_the_demo_models() -> None:
    result = darkroom("models", "verify", ROOT / "serve_config.yaml")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["demo-sd15  UNet and VAE: ok", "demo-sd15  text encoders: ok"]
    assert lines[-1] == "safety layers  classifier: ok"
    assert len(lines) == 4 * 2 + 1 + 1


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_names_the_file_that_is_wrong(tmp_path: Path, tiny_sd15: Path, part: str) -> None:
    folder = shutil.copytree(tiny_sd15, tmp_path / "tiny")
    file = folder / part
    file.write_bytes(file.read_bytes()[:-1])
    config = config_with(tmp_path, ("source: package:demo_models/demo-sd15\n", f"source: {folder}\n"))
    result = darkroom("models", "verify", config, "--model", "demo-sd15", "--json")
    assert result.exit_code == 1
    wrong = [one for one in document(result)["verified"] if not one["ok"]]
    assert len(wrong) == 1
    assert f"{file}: cut short or damaged" in wrong[0]["error"]


@pytest.mark.parametrize("command", ["pull", "verify"])
def test_a_model_that_the_configuration_does_not_have(command: str) -> None:
    result = darkroom("models", command, ROOT / "serve_config.yaml", "--model", "none", "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "unknown_model")
    assert "unknown model none; known: demo-sd15" in result.stderr
