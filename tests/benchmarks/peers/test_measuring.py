"""A whole session on a contender of the tests' own: a process that answers over HTTP."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers.measuring import Session
from benchmarks.peers.parts import PARTS, Scale
from benchmarks.peers.results import (
    HangUp,
    Idle,
    Kill,
    Mixed,
    Overload,
    Picture,
    Rates,
    Short,
    Start,
    Steps,
    Throughput,
    read_results,
)
from tests.benchmarks.peers.toy import toy

SCALE = Scale(concurrency=(1, 2), closed_s=0.0, rates=(0.5,), open_s=0.2, mixed=4, repeats=1, idle_s=0.1, back_s=1.0)


async def test_every_part_of_a_contender(tmp_path: Path) -> None:
    await Session(SCALE, 1, tmp_path, tmp_path).measure(toy(), ["start", *PARTS])
    results = read_results(tmp_path, "toy")
    assert {part: result.failed for part, result in results.parts.items() if result.failed} == {}
    kinds = (HangUp, Idle, Kill, Mixed, Overload, Picture, Rates, Short, Start, Steps, Throughput)
    found = {kind: results.figures(kind) for kind in kinds}
    assert None not in found.values()
    assert (tmp_path / "pictures" / "toy.png").read_bytes().startswith(b"\x89PNG")
    throughput = results.figures(Throughput)
    assert throughput is not None
    assert sorted(throughput.closed) == [1, 2]
    idle = results.figures(Idle)
    assert idle is not None
    assert idle.memory_bytes > 1 << 20
    # a process without anybody who starts it again loses what it was asked for
    kill = results.figures(Kill)
    assert kill is not None
    assert kill.asked == kill.answered + kill.failed + kill.silent == 4
    assert kill.failed + kill.silent > 0
    assert kill.back_s is None


async def test_what_cannot_be_measured_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    await Session(SCALE, 1, tmp_path, tmp_path).measure(toy("broken"), ["start", "idle"])
    results = read_results(tmp_path, "toy")
    assert not results.measured("start")
    assert "no image for" in (results.parts["start"].failed or "")
    assert "no image for" in capfd.readouterr().err


async def test_a_contender_that_does_not_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no licence')"]
    contender = replace(toy(), command=lambda _place: command)
    await Session(SCALE, 1, tmp_path, tmp_path).measure(contender, ["start"])
    assert "ended before it was ready" in (read_results(tmp_path, "toy").parts["start"].failed or "")
    assert "no licence" in capfd.readouterr().err
