"""The engine benchmark from the command line, on a tiny checkpoint. test_gpu.py has the processes of contenders."""

import json
from pathlib import Path

import pytest

from benchmarks.engine import contenders_of, main, parse, workload_of
from benchmarks.workload import EngineContender
from tests.benchmarks.in_thread import run_in_thread

TINY = ("--size", "64", "--steps", "2", "--threads", "1", "--device", "cpu", "--seconds", "0.01")


def test_a_run_reports_every_contender(shallow_sd15: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "report.json"
    arguments = ["--checkpoint", str(shallow_sd15), *TINY, "--concurrency", "1,3", "--baselines", "channels_last"]
    assert main([*arguments, "--engine", "max_rows=4", "--json", str(written)], run_in_thread) == 0
    printed = capfd.readouterr().out
    report = json.loads(written.read_text(encoding="utf-8"))
    (figures,) = report["figures"]
    assert [(f["contender"], f["way"], f["concurrency"]) for f in figures] == [
        ("engine max_rows=4", "lanes", 1),
        ("engine max_rows=4", "lanes", 3),
        ("diffusers channels_last", "one call at a time", 1),
        ("diffusers channels_last", "one call at a time", 3),
        ("diffusers channels_last", "one call for all", 3),
    ]
    for figure in figures:
        assert figure["failed"] is None
        assert figure["images"] >= 1
        assert figure["images_per_s"] > 0
        assert 0 < figure["latency_p50_s"] <= figure["latency_p99_s"]
        assert figure["peak_bytes"] > 0
    alone, together = figures[:2]
    assert alone["rows_per_step"] == 2.0
    assert 2.0 < together["rows_per_step"] <= 4.0
    assert 0 < together["vae_share"] < 1
    assert [(t["module"], t["size"]) for t in report["modules"]["times"]] == [
        *(("unet", rows) for rows in (1, 2, 4)),
        *(("vae decode", images) for images in (1, 2, 4)),
    ]
    assert report["modules"]["evaluations"] == 2
    assert report["versions"]["torch"]
    assert "engine max_rows=4, 3 at once:" in printed


def test_a_contender_that_fails_is_said_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nothing.safetensors"
    assert main(["--checkpoint", str(missing), "--family", "sd15", *TINY]) == 1  # in a process of its own
    assert "text encoding: CheckpointError: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--checkpoint", "owner/name"], "--family"),
        (["--random-weights", "sd15", "--baselines", "faster"], "unknown baseline 'faster'"),
        (["--random-weights", "sd15", "--engine", "max_rows"], "KEY=VALUE"),
        (["--random-weights", "sd15", "--sampler", "best"], "unknown sampler"),
        (["--random-weights", "sd15", "--size", "500"], "multiple of 8"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_defaults() -> None:
    sdxl = workload_of(parse(["--random-weights", "sdxl"]))
    assert (sdxl.width, sdxl.height, sdxl.sampler, sdxl.rows) == (1024, 1024, "euler", 2)
    demo = workload_of(parse(["--checkpoint", "demo-sd15", "--guidance", "1", "--sampler", "DPM++ 2M Karras"]))
    assert (demo.width, demo.sampler, demo.rows) == (256, "dpmpp_2m_karras", 1)
    names = [contender.name for contender in contenders_of(parse(["--random-weights", "sd15"]))]
    assert names == ["modules", "engine", "diffusers", "diffusers channels_last"]


def test_engines_with_nested_settings() -> None:
    (changed,) = contenders_of(
        parse(["--random-weights", "sd15", "--engine", "compile={},max_rows=4", "--baselines", "", "--no-modules"])
    )
    assert isinstance(changed, EngineContender)
    assert (changed.name, changed.settings) == ("engine compile={},max_rows=4", {"compile": {}, "max_rows": "4"})
