from pathlib import Path

from benchmarks.load import Served
from benchmarks.load_figures import load_figures
from benchmarks.peers.results import (
    Compiled,
    ContenderResults,
    PartResult,
    Reference,
    Start,
    Throughput,
    read_reference,
    read_results,
    write_model,
)


def test_results_survive_their_file(tmp_path: Path) -> None:
    assert read_results(tmp_path, "litserve") == ContenderResults(name="litserve")
    assert read_reference(tmp_path) is None
    load = load_figures([Served(asked=0.0, answered=1.0, fate="done")], objective_s=3.0)
    throughput = Throughput(closed={1: load, 8: load})
    done = PartResult(started="now", commit="abc", bare_s=0.6, figures=throughput)
    failed = PartResult(started="now", commit="abc", bare_s=None, failed="no licence")
    results = ContenderResults(name="litserve", parts={"throughput": done, "start": failed})
    write_model(tmp_path, "litserve", results)
    write_model(tmp_path, "reference", Reference(bare_s=0.6))
    assert read_results(tmp_path, "litserve") == results
    assert read_reference(tmp_path) == Reference(bare_s=0.6)
    assert {file.name for file in tmp_path.iterdir()} == {"litserve.json", "reference.json"}


def test_figures_by_their_kind() -> None:
    done = PartResult(started="now", commit="abc", bare_s=None, figures=Compiled(seconds=3.0))
    results = ContenderResults(name="darkroom", parts={"compile": done})
    assert results.figures(Compiled) == Compiled(seconds=3.0)
    assert results.figures(Start) is None
    assert (results.measured("compile"), results.measured("start")) == (True, False)
