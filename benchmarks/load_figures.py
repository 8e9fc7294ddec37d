"""From what was served to figures: rates, percentiles, goodput; and the whole report. Pure; measures nothing."""

from collections.abc import Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict

from benchmarks.load import Overtaking, Served
from benchmarks.results import percentiles
from benchmarks.service_requests import ImageRequest


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadFigures(_Figures):
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


class OvertakingFigures(_Figures):
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


class LoneFigures(_Figures):
    """A lone request; medians, seconds.

    bare_in_turns_s: the bare pipeline's calls of the same requests, taken in turns with the service's; None without.
    """

    requests: int
    service_s: float
    bare_in_turns_s: float | None

    @property
    def of_bare(self) -> float | None:
        """What the service takes, in bare calls."""
        return None if self.bare_in_turns_s is None else self.service_s / self.bare_in_turns_s


class ServiceFigures(_Figures):
    """One service. closed: by concurrency, as text. opened: by offered rate, in their order.

    ready_s: from its start until it could serve; None where it ran before. bare_around_s: the pipeline's call with
    nothing else running, the mean of the medians before its start and after its end: what the machine was worth then.
    """

    name: str
    ready_s: float | None
    lone: LoneFigures
    closed: dict[str, LoadFigures]
    opened: tuple[LoadFigures, ...]
    overtaking: OvertakingFigures | None
    bare_around_s: float | None = None


class ServiceReport(_Figures):
    """A run. objective_s: the latency that goodput asks for. bare_p50_s: of the pipeline's call without a server, at
    the beginning.

    picture_difference: mean absolute difference of the services' pictures of one request, in grey levels (0..255):
    they draw the same thing.
    """

    started: str
    command: str
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    request: ImageRequest
    safety: bool
    objective_s: float
    bare_p50_s: float | None
    picture_difference: float | None
    services: tuple[ServiceFigures, ...]


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


def lone_figures(turns: Sequence[tuple[float, float]]) -> LoneFigures:
    """Medians of seconds by the service and by the bare pipeline. Raises StatisticsError for none."""
    service_s, bare_s = zip(*turns, strict=True)
    return LoneFigures(requests=len(turns), service_s=median(service_s), bare_in_turns_s=median(bare_s))


def overtaking_figures(repeats: Sequence[Overtaking], alone_s: Sequence[float]) -> OvertakingFigures:
    """Medians of the repeats. Raises StatisticsError for none."""
    return OvertakingFigures(
        short_s=median(one.short_s for one in repeats),
        alone_s=median(alone_s),
        long_s=median(seconds for one in repeats for seconds in one.long_s),
        repeats=len(repeats),
    )
