import pytest

from benchmarks.load import Overtaking, Served
from benchmarks.load_figures import load_figures, overtaking_figures

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
