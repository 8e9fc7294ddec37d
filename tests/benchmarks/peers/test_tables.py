"""Tables and goals of made-up results, whose figures are easy to foresee."""

import math
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.load import Served
from benchmarks.load_figures import LoadFigures, OvertakingFigures, load_figures
from benchmarks.peers.results import (
    ContenderResults,
    Figures,
    HangUp,
    Idle,
    Kill,
    Mixed,
    Overload,
    PartResult,
    Picture,
    Rates,
    Short,
    Start,
    Steps,
    Throughput,
)
from benchmarks.peers.tables import goals, markdown, plot, psnr, text


def load(rate: float, offered_per_s: float | None = None) -> LoadFigures:
    """Twenty pictures at this rate, each in time but the last."""
    served = [Served(asked=at / rate, answered=(at + 1) / rate, fate="done") for at in range(19)]
    late = Served(asked=0.0, answered=20 / rate, fate="done")
    return load_figures([*served, late], 1.5 / rate, offered_per_s)


def contender(name: str, bare_s: float, *figures: Figures) -> ContenderResults:
    parts = {one.part: PartResult(started="now", commit="abc", bare_s=bare_s, figures=one) for one in figures}
    return ContenderResults(name=name, parts=parts)


def server(name: str, speed: float, bare_s: float = 1.0) -> ContenderResults:
    """A contender that draws so many pictures a second at any number of clients."""
    return contender(
        name,
        bare_s,
        Start(ready_s=10.0, first_s=2.0, later_s=1.0),
        Picture(file=f"{name}.png"),
        Throughput(closed={clients: load(speed) for clients in (1, 4, 8, 16)}),
        Rates(objective_s=3.0, opened=(load(speed, 0.5), load(speed, 1.0))),
        Mixed(load=load(speed)),
        Short(overtaking=OvertakingFigures(short_s=1 + 4 / speed, alone_s=1.0, long_s=9.0, repeats=2)),
        Idle(processor_share=0.25, memory_bytes=3 << 30),
        HangUp(long_jobs=4, after_s=8.0, alone_s=1.0),
        Overload(load=load(speed, 2.0), after_s=1.5),
        Kill(asked=4, answered=1, failed=2, silent=1, back_s=None),
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4), (100, 100, 100)).save(tmp_path / "bare.png")
    Image.new("RGB", (4, 4), (110, 100, 100)).save(tmp_path / "darkroom.png")
    Image.new("RGB", (4, 4), (100, 100, 100)).save(tmp_path / "litserve.png")
    return tmp_path


def test_all_of_it_in_tables(out: Path) -> None:
    steps = [
        contender(name, 1.0, Steps(step_s=s, rest_s=1.0)) for name, s in (("real-darkroom", 3.3), ("real-sdcpp", 2))
    ]
    results = [server("bare", 1.0), server("darkroom", 2.0), server("litserve", 1.0), *steps]
    page = markdown(results, out)
    for row in (
        "| darkroom | 2 | 2 | 2 | 2 | 0.50 | 1.00 |",
        "| darkroom | 2.00 | 0.5 / 8.2 | 2.00 | 1.00 |",
        "| litserve | 10.0 | 2.00 | 1.00 | 12.0 | 3.00 | 25.0% |",
        "| litserve | 1 of 4 | 2 / 1 | never | 7.00 | 19 / 1 / 0 / 0 | 1.50 |",
        "| real-darkroom | 3.30 | 1.00 |",
        "| darkroom | bare | 32.9 |",
        "| litserve | bare | inf |",
        "- a step at real size takes 1.65 of stable-diffusion.cpp's (goal <= 1.1): missed",
    ):
        assert row in page, row
    assert "Not measured" not in page
    assert "real-darkroom" in text(results, out)


def test_goals_are_compared_in_bare_calls() -> None:
    """Darkroom drew as many pictures on a machine that was half as fast."""
    lines = goals([server("darkroom", 1.0, bare_s=2.0), server("litserve", 1.0)])
    assert lines == [
        "1 at once: 2.00 x litserve (goal >= 0.95): met",
        "4 at once: 2.00 x litserve (goal >= 1): met",
        "8 at once: 2.00 x litserve (goal >= 1): met",
        "16 at once: 2.00 x litserve (goal >= 1): met",
        "mixed work takes 0.50 of litserve's (goal <= 0.67): met",
        "the short job waits 0.50 of litserve's (goal <= 1.00): met",
        "idle processor time 25.0% of a core (goal <= 3 %): missed",
        "the first image costs 2.00 later ones (goal <= 1.5): missed",
    ]
    assert goals([server("litserve", 1.0)]) == []


def test_what_failed_is_told(tmp_path: Path) -> None:
    failed = PartResult(started="now", commit="abc", bare_s=None, failed="no licence")
    page = markdown([ContenderResults(name="bentoml", parts={"start": failed})], tmp_path)
    assert "| bentoml | start | no licence |" in page


def test_likeness(out: Path) -> None:
    assert psnr(out / "bare.png", out / "litserve.png") == math.inf
    assert psnr(out / "bare.png", out / "darkroom.png") == pytest.approx(10 * math.log10(255**2 / (100 / 3)))


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot([server("darkroom", 1.0)], tmp_path / "rates.png")
    with Image.open(tmp_path / "rates.png") as image:
        assert image.width > 600
