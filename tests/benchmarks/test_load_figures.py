from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from benchmarks.load import Overtaking, Served
from benchmarks.service_figures import (
    LoadFigures,
    LoneFigures,
    ServiceFigures,
    ServiceReport,
    load_figures,
    lone_figures,
    overtaking_figures,
)
from benchmarks.service_requests import ImageRequest
from benchmarks.service_tables import claims, markdown, plot, print_report

SERVED = [
    Served(asked=0.0, answered=1.0, fate="done"),
    Served(asked=0.5, answered=2.0, fate="done"),
    Served(asked=1.0, answered=1.1, fate="refused", reason="full"),
    Served(asked=2.0, answered=5.0, fate="done"),
    Served(asked=4.0, answered=4.2, fate="failed", reason="broken"),
    Served(asked=4.0, answered=4.9, fate="blocked"),
]


def test_figures_of_a_load() -> None:
    figures = load_figures(SERVED, objective_s=1.5, offered_per_s=1.0)
    assert (figures.offered, figures.done, figures.blocked, figures.refused, figures.failed) == (6, 3, 1, 1, 1)
    assert figures.seconds == 5.0
    assert figures.images_per_s == pytest.approx(0.6)
    assert figures.latency_p50_s == pytest.approx(1.5)
    assert figures.latency_p99_s == pytest.approx(2.97)
    assert (figures.goodput_per_s, figures.goodput_share) == (pytest.approx(0.4), pytest.approx(2 / 6))
    assert figures.reasons == ("broken", "full")


def test_figures_where_nothing_was_done() -> None:
    figures = load_figures([SERVED[2]], objective_s=1.0)
    assert (figures.done, figures.latency_p50_s, figures.goodput_share) == (0, 0.0, 0.0)
    with pytest.raises(ValueError, match="nothing"):
        load_figures([], objective_s=1.0)


def test_waiting_is_what_others_cost() -> None:
    figures = overtaking_figures([Overtaking(short_s=3.0, long_s=(9.0, 11.0))], alone_s=[0.4, 0.5, 0.6])
    assert (figures.waits_s, figures.long_s, figures.repeats) == (2.5, 10.0, 1)
    assert overtaking_figures([Overtaking(short_s=0.4, long_s=(1.0,))], alone_s=[0.5]).waits_s == 0.0


def test_a_lone_request_without_bare_calls_has_no_ratio() -> None:
    assert LoneFigures(requests=3, service_s=1.0, bare_in_turns_s=None).of_bare is None


def service(name: str, speed: float) -> ServiceFigures:
    def load(rate: float | None) -> LoadFigures:
        return load_figures(
            [Served(asked=float(at), answered=at + 1 / speed, fate="done") for at in range(5)], 3.0, rate
        )

    return ServiceFigures(
        name=name,
        ready_s=12.0,
        lone=lone_figures([(1 / speed, 0.8), (1 / speed + 0.2, 0.9), (1 / speed - 0.1, 1.1)]),
        bare_around_s=0.9 * speed,
        closed={"1": load(None), "8": load(None)},
        opened=(load(0.5), load(1.0)),
        overtaking=overtaking_figures([Overtaking(short_s=4 / speed**3, long_s=(10.0,))], [1 / speed]),
    )


def report(*services: ServiceFigures) -> ServiceReport:
    return ServiceReport(
        started="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks.service",
        commit="abc",
        machine={"processor": "A", "processors": 2},
        versions={"torch": "2.13.0"},
        request=ImageRequest(
            prompt="", seed=1, steps=20, guidance_scale=5.0, width=256, height=256, sampler="dpmpp_2m"
        ),
        safety=True,
        objective_s=3.0,
        bare_p50_s=0.9,
        picture_difference=0.01,
        services=services,
    )


def test_the_report_is_a_table_for_people_and_survives_json(capsys: pytest.CaptureFixture[str]) -> None:
    whole = report(service("classic", 1.0), service("darkroom", 1.25))
    assert ServiceReport.model_validate_json(whole.model_dump_json()) == whole
    print_report(whole, Console(width=200))
    printed = capsys.readouterr().out
    text = markdown(whole)
    for word in (
        "A lone request",
        "Closed loop",
        "Open loop, Poisson",
        "behind four 50-step jobs",
        "classic",
        "darkroom",
    ):
        assert word in printed
        assert word in text
    assert len(claims(whole)) == 3
    assert "0.71 of the bare pipeline call (promised" in text  # 0.8 s of 1.125 s
    assert "in turns with it, beside the waiting service, 0.89" in text  # 0.8 s of 0.9 s
    assert "| darkroom | 0.80 | 0.90 | 0.89 | 1.12 | 0.71 |" in text
    assert "1.04 times the images (promised: at least 1.5); by the bare calls around each, 1.30 times" in text


def test_a_report_of_one_service_leaves_out_what_needs_two() -> None:
    assert [line[:14] for line in claims(report(service("darkroom", 1.0)))] == ["a lone request"]
    assert claims(report(service("classic", 1.0))) == []


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "service.png"
    plot(report(service("classic", 1.0), service("darkroom", 1.25)), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 600
