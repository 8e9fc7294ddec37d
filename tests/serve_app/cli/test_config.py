"""`darkroom config check`: every problem with its line, for people and for machines."""

import json
import shutil
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from tests.ray_cluster import free_port
from tests.serve_app.cli.command_line import ROOT, config_with, darkroom, document
from tests.serve_app.provenance.authorities import new_signer


def test_the_configurations_of_the_repository() -> None:
    paths = sorted(ROOT.glob("serve_config*.yaml"))
    result = darkroom("config", "check", *paths)
    assert (result.exit_code, result.stdout) == (0, "".join(f"{path}: OK\n" for path in paths))


def test_a_misspelt_key(tmp_path: Path) -> None:
    path = config_with(tmp_path, ("port: 8000", "prot: 8000"))
    result = darkroom("config", "check", ROOT / "serve_config.yaml", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}:")
    assert "http_options.prot: unknown key" in result.stderr
    files = document(darkroom("config", "check", ROOT / "serve_config.yaml", path, "--json"))["files"]
    assert [(one["ok"], len(one["problems"])) for one in files] == [(True, 0), (False, 1)]


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    path = config_with(
        tmp_path,
        ("source: package:demo_models/demo-sd15\n", "source: package:demo_models/none\n"),
        ("source: package:demo_models/demo-sdxl\n", "source: /nowhere/sdxl.safetensors\n"),
        ("source: package:demo_models/demo-sdxl-refiner\n", "source: somebody/something\n"),  # a hub's: not asked
    )
    result = darkroom("config", "check", path, "--json")
    [one] = document(result)["files"]
    assert (result.exit_code, one["ok"]) == (1, False)
    lines = path.read_text().splitlines()
    for problem, source in zip(one["problems"], ("package:demo_models/none", "/nowhere/sdxl.safetensors"), strict=True):
        assert source in problem
        assert source in lines[int(problem.split(":")[1]) - 1]


def test_a_folder_that_models_are_added_from_and_that_is_not_there(tmp_path: Path) -> None:
    default = "      default_model: demo-sd15\n"
    path = config_with(tmp_path, (default, f"{default}      registry: {{folders: [{tmp_path}, /nowhere]}}\n"))
    result = darkroom("config", "check", path)
    assert (result.exit_code, result.stderr.count("error: ")) == (1, 1)
    assert "registry.folders.1: /nowhere: there is no such folder" in result.stderr


def test_a_folder_of_another_family(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "demo_models" / "demo-sd15", tmp_path / "other")
    config = tmp_path / "other" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim"', '"renamed"'))
    path = config_with(tmp_path, ("source: package:demo_models/demo-sd15\n", f"source: {tmp_path / 'other'}\n"))
    result = darkroom("config", "check", path)
    assert (result.exit_code, "expected cross_attention_dim" in result.stderr) == (1, True), result.stderr


def test_a_folder_that_lacks_weights(tmp_path: Path) -> None:
    source = "source: package:demo_models/demo-sd15\n"
    for part in ("unet", "vae", "text_encoder"):
        folder = tmp_path / part
        shutil.copytree(ROOT / "demo_models" / "demo-sd15", folder)
        for weights in (folder / part).glob("*.safetensors"):
            weights.unlink()
        [one] = document(darkroom("config", "check", config_with(tmp_path, (source, f"source: {folder}\n")), "--json"))[
            "files"
        ]
        [problem] = one["problems"]
        assert f"models.demo-sd15.source: {folder / part}: expected " in problem
        assert problem.endswith("found no weights")
    (tmp_path / "empty").mkdir()
    path = config_with(tmp_path, (source, f"source: {tmp_path / 'empty'}\n"))
    assert "empty/model_index.json: missing" in darkroom("config", "check", path).stderr


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_text("not found")
    source, mine = "source: package:demo_models/demo-sd15\n", tmp_path / "mine.safetensors"
    path = config_with(tmp_path, (source, f"source: {mine}\n"))
    assert f"{mine}: not a safetensors file" in darkroom("config", "check", path).stderr
    path = config_with(tmp_path, (source, f"{source}          vae: {tmp_path}/vae.safetensors\n"))
    assert "demo-sd15.vae: " in darkroom("config", "check", path).stderr


def test_a_relative_path_is_no_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    old = "source: package:demo_models/demo-sd15\n"
    for source, reason in (
        ("models/mine", "there is no such folder, and no repository of the hub is meant: models is a folder here"),
        ("elsewhere/mine.safetensors", "there is no such file"),
        ("elsewhere/mine.ckpt", ".ckpt files are pickles"),
        ("./mine", "it isn't owner/name"),
    ):
        refused = darkroom("config", "check", config_with(tmp_path, (old, f"source: {source}\n")))
        assert (refused.exit_code, reason in refused.stderr) == (1, True), refused.stderr
    assert darkroom("config", "check", config_with(tmp_path, (old, "source: owner/mine\n"))).exit_code == 0


def test_loras_of_models_that_are_not_there(tmp_path: Path) -> None:
    worn = "demo-sd15\n          loras: [{name: demo-night, weight: 0.5}, {name: lcm}]\n"
    path = config_with(tmp_path, ("source: package:demo_models/demo-sd15\n", f"source: package:demo_models/{worn}"))
    [one] = document(darkroom("config", "check", path, "--json"))["files"]
    [problem] = one["problems"]
    where, key, said = problem.split(": ", 2)
    assert "{name: lcm}" in path.read_text().splitlines()[int(where.rsplit(":", 1)[1]) - 1]
    assert key == "applications.0.args.models.demo-sd15.loras.1.name"
    assert said == "no LoRA named 'lcm'; known: demo-night (package:demo_models/demo-loras/lcm.safetensors)"
    path = config_with(tmp_path, ("folder: package:demo_models/demo-loras", "folder: /nowhere"))
    [one] = document(darkroom("config", "check", path, "--json"))["files"]
    assert "loras.folder: /nowhere: expected a folder of LoRAs" in one["problems"][0]


@pytest.mark.parametrize(("section", "of"), [("controlnets", "ControlNets"), ("upscalers", "upscalers")])
def test_folders_that_are_not_there(tmp_path: Path, section: str, of: str) -> None:
    lines = (ROOT / "serve_config.yaml").read_text().splitlines()
    [line] = [one for one in lines if one.startswith(f"      {section}: ")]
    path = config_with(tmp_path, (line, f"      {section}: {{folder: /nowhere}}"))
    [problem] = document(darkroom("config", "check", path, "--json"))["files"][0]["problems"]
    assert f"{section}.folder: /nowhere: expected a folder of {of}" in problem
    assert "/nowhere" in path.read_text().splitlines()[int(problem.split(":")[1]) - 1]


def test_claims_that_do_not_fit(tmp_path: Path) -> None:
    gpu = ROOT / "serve_config.gpu.yaml"
    assert darkroom("config", "check", gpu, "--gpus", "1").exit_code == 0
    sd15 = "sd15:\n          num_cpus: 0.1\n          num_gpus: "
    path = config_with(tmp_path, (f"{sd15}0.3", f"{sd15}0.6"))  # all together have 1.0
    result = darkroom("config", "check", path, "--gpus", "1", "--json")
    [problem] = document(result)["files"][0]["problems"]
    assert result.exit_code == 1
    assert "the stages claim 1.3 GPUs (text_encoder 0.05, sd15 0.6, sdxl_base 0.3," in problem
    assert path.read_text().splitlines()[int(problem.split(":")[1]) - 1].strip() == "stages:"
    assert darkroom("config", "check", path, "--gpus", "2").exit_code == 0
    assert darkroom("config", "check", path, "--gpus", "0").exit_code == 0, "without a GPU all run on the CPU"


def test_what_memory_would_hold(tmp_path: Path) -> None:
    path = config_with(tmp_path, ("            max_rows: 16\n", "            max_rows: 4\n"))
    [told] = document(darkroom("config", "check", path, "--gpu-gib", "24", "--json"))["files"]
    sd15 = told["memory"]["sd15"]
    assert list(told["memory"]) == ["sd15", "sdxl_base", "sdxl_refiner"]
    claim, _, compiling = sd15["limit_origin"].partition(", less ")
    assert (sd15["policy"], claim) == ("resident", "0.3 of a device's 24 GiB")
    assert compiling.endswith(" MiB for the process that compiles")
    adapters = (64 + 64 + 16) << 20  # LoRAs, ControlNets, IP-Adapters
    left = int(0.3 * 24 * 2**30) - adapters - float(compiling.split()[0]) * 2**20
    assert sd15["limit"] == pytest.approx(left, abs=0.1 * 2**20), "adapters have their room"
    assert {row["checkpoint"] for row in sd15["rows"]} == {"demo-sd15", "demo-sd15-outline", "demo-sd15-stripes"}
    assert sd15["rows"][0]["batch"] == "4 rows of 512 x 512 pixels"
    lines = darkroom("config", "check", path, "--memory").stdout.splitlines()
    assert lines[1] == "sd15:"
    assert lines[2].startswith("  memory: resident (on the CPU nothing is gained by another); the limit is ")
    tight = document(darkroom("config", "check", path, "--gpu-gib", "1.15", "--json"))["files"][0]["memory"]["sd15"]
    assert (tight["policy"], tight["rows"][1]["batch"]) == ("model_offload", "1 image(s) of 512 x 512 pixels")
    assert tight["rows"][0]["on_device"] < sd15["rows"][0]["on_device"]


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    result = darkroom("config", "check", path, "--json")
    assert (result.exit_code, document(result)["files"][0]["ok"]) == (1, False)


def test_what_a_start_needs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        path = config_with(tmp_path, ("port: 8000", f"port: {listener.getsockname()[1]}"))
        assert darkroom("config", "check", path).exit_code == 0
        result = darkroom("config", "check", path, "--start")
    assert result.exit_code == 1
    assert "can't listen on" in result.stderr


def test_a_start_is_warned_of_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    for days in (20, 40):
        signer = new_signer(valid=(timedelta(days=-1), timedelta(days=days)))
        c2pa = signer.settings(tmp_path / str(days)).model_dump(mode="json", exclude_defaults=True)
        c2pa_default = "c2pa: {development_folder: darkroom-data/provenance}"
        path = config_with(
            tmp_path, (c2pa_default, f"c2pa: {json.dumps(c2pa)}"), ("port: 8000", f"port: {free_port()}")
        )
        result = darkroom("config", "check", path, "--start")
        assert result.exit_code == 0, result.stderr
        expires = f"{signer.certificate.not_valid_after_utc:%Y-%m-%d}"
        said = f"provenance.c2pa: the certificate 'images of tests' that signs images expires on {expires}"
        assert (said in result.stderr) == (days < 30)
    assert "expires" not in darkroom("config", "check", path).stderr


def test_merge_prints_what_check_takes(tmp_path: Path) -> None:
    result = darkroom("config", "merge", ROOT / "serve_config.cluster.yaml", ROOT / "overlay.laptop.yaml")
    path = tmp_path / "laptop.yaml"
    path.write_text(result.stdout)
    assert result.exit_code == 0
    assert darkroom("config", "check", path).stdout == f"{path}: OK\n"
    (tmp_path / "list.yaml").write_text("- a\n")
    refused = darkroom("config", "merge", path, tmp_path / "list.yaml")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "list.yaml: expected keys and values" in refused.stderr
