import pytest
import typer

from benchmarks.peers.__main__ import chosen, left
from benchmarks.peers.registry import CONTENDERS, PART_NAMES, PARTS_OF
from benchmarks.peers.results import Compiled, ContenderResults, PartResult


def test_names_are_of_contenders_and_of_parts() -> None:
    assert chosen(["throughput", "litserve", "darkroom"]) == (["darkroom", "litserve"], ["throughput"])
    assert chosen(["kill"]) == (list(CONTENDERS), ["kill"])
    assert chosen([]) == (list(CONTENDERS), list(PART_NAMES))
    with pytest.raises(typer.BadParameter, match="comfyui: there are bare, "):
        chosen(["comfyui"])


def test_what_is_measured_is_not_measured_again() -> None:
    done = PartResult(started="now", commit="abc", bare_s=None, figures=Compiled(seconds=1.0))
    failed = done.model_copy(update={"figures": None, "failed": "no"})
    results = ContenderResults(name="darkroom", parts={"compile": done, "start": failed})
    assert left(results, PART_NAMES, again=False) == list(PARTS_OF["darkroom"][1:])
    assert left(results, ["compile", "idle"], again=True) == ["compile", "idle"]
    assert left(ContenderResults(name="bare"), ["kill", "idle"], again=False) == ["idle"]
