"""What a part of `make gpu` has found so far: what is kept as JSON, and gone on from."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from benchmarks.gpu_parts import Step
from benchmarks.results import ONE, ContenderReport
from benchmarks.workload import DiffusersContender, EngineContender


class StepResult(BaseModel):
    """A step, what it found, and how many seconds that took, its process's start included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Step
    report: ContenderReport
    seconds: float


class PartReport(BaseModel):
    """A part on one machine, with one version of everything. stopped: why it isn't whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    started: str
    command: str
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    results: tuple[StepResult, ...] = ()
    stopped: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        unfinished.replace(path)

    def of(self, step: Step) -> StepResult | None:
        """What is known of a step."""
        return next((result for result in self.results if result.step == step), None)

    def having(self, result: StepResult) -> Self:
        """With a step's result, in the place of an earlier one."""
        others = tuple(other for other in self.results if other.step != result.step)
        return self.model_copy(update={"results": (*others, result)})


def left_of(step: Step, earlier: StepResult | None) -> Step | None:
    """What of a step is still to be done; None where it is whole."""
    if earlier is None:
        return step
    if earlier.report.failed is None:
        return None
    if not isinstance(step.contender, EngineContender | DiffusersContender):
        return step
    # one call at a time gives figures for all concurrencies, before the others begin
    done = {figure.concurrency for figure in earlier.report.figures if figure.way != ONE or figure.concurrency == 1}
    left = tuple(n for n in step.concurrency if n not in done)
    return step.model_copy(update={"concurrency": left}) if left else None


def together(earlier: StepResult | None, found: ContenderReport) -> ContenderReport:
    """What was found, and of the figures that weren't found anew, the earlier ones."""
    if earlier is None or not earlier.report.figures:
        return found
    figures = {(one.way, one.concurrency): one for one in (*earlier.report.figures, *found.figures)}
    return found.model_copy(update={"figures": tuple(figures.values())})
