"""From what was served to figures: rates, percentiles, goodput. Pure; measures nothing."""

from collections.abc import Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict

from benchmarks.load import Overtaking, Served
from benchmarks.results import percentiles


class FrozenModel(BaseModel):
    """Read from files as strictly as it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadFigures(FrozenModel):
    """One load on one service.

    offered: requests. done, blocked, refused, failed: what became of them. offered_per_s: None in a closed loop.
    images_per_s: done, over the time from the first request to the last answer. latencies are of those done.
    goodput_per_s: done within the objective, over the same time; goodput_share: of all offered.
    """

    offered: int
    done: int
    blocked: int
    refused: int
    failed: int
    seconds: float
    images_per_s: float
    latency_p50_s: float
    latency_p99_s: float
    goodput_per_s: float
    goodput_share: float
    offered_per_s: float | None = None
    reasons: tuple[str, ...] = ()


class OvertakingFigures(FrozenModel):
    """A short job behind long ones; medians over the repeats, seconds.

    alone_s: the same short job with nobody before it. waits_s: what it takes longer than that.
    """

    short_s: float
    alone_s: float
    long_s: float
    repeats: int

    @property
    def waits_s(self) -> float:
        """What the short job waits for others."""
        return max(0.0, self.short_s - self.alone_s)


def load_figures(served: Sequence[Served], objective_s: float, offered_per_s: float | None = None) -> LoadFigures:
    """Figures of one load. Raises ValueError for an empty one."""
    if not served:
        raise ValueError("nothing was asked")
    done = [one for one in served if one.fate == "done"]
    seconds = max(one.answered for one in served) - min(one.asked for one in served)
    p50, p99 = percentiles([one.latency for one in done]) if done else (0.0, 0.0)
    good = sum(one.latency <= objective_s for one in done)
    return LoadFigures(
        offered=len(served),
        done=len(done),
        blocked=sum(one.fate == "blocked" for one in served),
        refused=sum(one.fate == "refused" for one in served),
        failed=sum(one.fate == "failed" for one in served),
        seconds=seconds,
        images_per_s=len(done) / seconds,
        latency_p50_s=p50,
        latency_p99_s=p99,
        goodput_per_s=good / seconds,
        goodput_share=good / len(served),
        offered_per_s=offered_per_s,
        reasons=tuple(sorted({one.reason for one in served if one.reason})[:5]),
    )


def overtaking_figures(repeats: Sequence[Overtaking], alone_s: Sequence[float]) -> OvertakingFigures:
    """Medians of the repeats. Raises StatisticsError for none."""
    return OvertakingFigures(
        short_s=median(one.short_s for one in repeats),
        alone_s=median(alone_s),
        long_s=median(seconds for one in repeats for seconds in one.long_s),
        repeats=len(repeats),
    )
