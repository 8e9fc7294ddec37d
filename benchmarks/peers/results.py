"""What is measured of a contender, part by part, and the files that keep it."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from benchmarks.load_figures import FrozenModel, LoadFigures, OvertakingFigures

PartName = Literal[
    "compile",
    "start",
    "picture",
    "throughput",
    "steps",
    "rates",
    "mixed",
    "short",
    "idle",
    "hangup",
    "overload",
    "kill",
]


class Compiled(FrozenModel):
    """Darkroom's forwards were compiled, or were there already; the seconds that it took."""

    part: Literal["compile"] = "compile"
    seconds: float


class Start(FrozenModel):
    """From the command to the first picture, and a later one, the median of several; seconds."""

    part: Literal["start"] = "start"
    ready_s: float
    first_s: float
    later_s: float


class Picture(FrozenModel):
    """The picture of one request, to be compared. file: beside the results."""

    part: Literal["picture"] = "picture"
    file: str


class Throughput(FrozenModel):
    """Closed loops, by how many clients ask at once."""

    part: Literal["throughput"] = "throughput"
    closed: dict[int, LoadFigures]


class Steps(FrozenModel):
    """A lone picture's time: of one more step, and of what is no step (text, decode, HTTP)."""

    part: Literal["steps"] = "steps"
    step_s: float
    rest_s: float


class Rates(FrozenModel):
    """Open loops, in the order of their rates. objective_s: the latency that goodput asks for."""

    part: Literal["rates"] = "rates"
    objective_s: float
    opened: tuple[LoadFigures, ...]


class Mixed(FrozenModel):
    """A closed loop of eight clients with requests of all kinds."""

    part: Literal["mixed"] = "mixed"
    load: LoadFigures


class Short(FrozenModel):
    """A short job behind long ones."""

    part: Literal["short"] = "short"
    overtaking: OvertakingFigures


class Idle(FrozenModel):
    """With nothing to do: processor seconds a second, and the PSS of all processes."""

    part: Literal["idle"] = "idle"
    processor_share: float
    memory_bytes: int


class HangUp(FrozenModel):
    """A short job right after the clients of long ones hung up, and the same job alone; seconds."""

    part: Literal["hangup"] = "hangup"
    long_jobs: int
    after_s: float
    alone_s: float


class Overload(FrozenModel):
    """An open loop of twice what the contender draws at best; a lone request after it, seconds."""

    part: Literal["overload"] = "overload"
    load: LoadFigures
    after_s: float


class Kill(FrozenModel):
    """`kill -9` of the process that computes, while requests are under way.

    answered: with a picture. failed: with an error. silent: not at all, for as long as was waited.
    back_s: from the kill until a new request was drawn; None: it wasn't.
    """

    part: Literal["kill"] = "kill"
    asked: int
    answered: int
    failed: int
    silent: int
    back_s: float | None


Figures = Annotated[
    Compiled | Start | Picture | Throughput | Steps | Rates | Mixed | Short | Idle | HangUp | Overload | Kill,
    Field(discriminator="part"),
]


_Kind = TypeVar("_Kind", bound=FrozenModel)


class PartResult(FrozenModel):
    """A part of a contender. Either its figures, or why there are none.

    bare_s: the bare pipeline's call right before the contender was started: what the machine was worth then.
    """

    started: str
    commit: str
    bare_s: float | None
    figures: Figures | None = None
    failed: str | None = None


class ContenderResults(FrozenModel):
    """All that is known of a contender."""

    name: str
    parts: dict[PartName, PartResult] = Field(default_factory=dict)

    def figures(self, kind: type[_Kind]) -> _Kind | None:
        """The figures of that kind, if they were measured."""
        for result in self.parts.values():
            if isinstance(result.figures, kind):
                return result.figures
        return None

    def measured(self, part: PartName) -> bool:
        """Whether there are figures of a part."""
        return part in self.parts and self.parts[part].figures is not None


class Reference(FrozenModel):
    """The bare pipeline's call when the first contender was measured: rates and objectives of all are multiples."""

    bare_s: float


def read_results(folder: Path, name: str) -> ContenderResults:
    """What is known of a contender; nothing, if there is no file."""
    file = folder / f"{name}.json"
    if not file.is_file():
        return ContenderResults(name=name)
    return ContenderResults.model_validate_json(file.read_text(encoding="utf-8"))


def read_reference(folder: Path) -> Reference | None:
    """What all rates and objectives are multiples of; None before the first contender."""
    file = folder / "reference.json"
    return Reference.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def write_model(folder: Path, name: str, content: FrozenModel) -> None:
    """Write a file whole, or not at all."""
    file = folder / f"{name}.json"
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(content.model_dump_json(indent=1), encoding="utf-8")
    unfinished.replace(file)
