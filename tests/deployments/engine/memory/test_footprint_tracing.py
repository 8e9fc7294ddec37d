"""What was traced once is read, by whoever asks for the same; what can't be read or kept is traced."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.engine.memory.footprint import Footprint
from deployments.engine.memory.footprint_tracing import cached_footprint

POINTS = ((64, 1), (1024, 20), (16384, 300))


def tracing(step: int) -> tuple[Callable[[], Footprint], list[int]]:
    """A trace that finds another step each time, and how often it was asked."""
    asked: list[int] = []

    def trace() -> Footprint:
        asked.append(step)
        points = ((64, step), *POINTS[1:])
        return Footprint(
            unet=5,
            vae=4,
            group=3,
            module=2,
            steps=points,
            alone=POINTS,
            decodes=POINTS,
            tile=9,
            widened=0,
            conditions=7,
            extra=1,
        )

    return trace, asked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "darkroom" / "footprints"


def test_it_is_traced_once(folder: Path) -> None:
    first, asked_first = tracing(1)
    second, asked_second = tracing(2)
    found = cached_footprint(["a", 1], first)
    assert cached_footprint(["a", 1], second) == found == first()
    assert cached_footprint(["a", 2], second).steps[0] == (64, 2)
    assert (len(asked_first), len(asked_second)) == (2, 1)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"unet": 1}', "\x00"])
def test_a_damaged_file_is_replaced(folder: Path, content: str) -> None:
    trace, asked = tracing(1)
    cached_footprint(["a"], trace)
    (file,) = folder.iterdir()
    file.write_text(content)
    assert cached_footprint(["a"], trace) == cached_footprint(["a"], trace) == trace()
    assert len(asked) == 3


def test_where_nothing_can_be_kept_it_is_traced_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    trace, asked = tracing(1)
    assert cached_footprint(["a"], trace) == cached_footprint(["a"], trace)
    assert len(asked) == 2
