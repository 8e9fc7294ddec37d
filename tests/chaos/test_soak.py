"""What the soak calls a broken promise."""

from collections.abc import Callable

from tests.chaos.soak import _PARTS, Sample, judged

UNTIL = 1800.0
SETTLED = UNTIL / 4


def samples(part: str, change: Callable[[Sample], Sample | None]) -> dict[tuple[str, int], list[Sample]]:
    """Of a service in which all is as it was, but for what `change` makes of one part."""
    steady = [Sample(at=10.0 * number, rss=500, descriptors=60, threads=40) for number in range(180)]
    changed = [one for one in map(change, steady) if one is not None]
    return {(name, pid): changed if name == part else steady for pid, name in enumerate(_PARTS)}


def broken(part: str, change: Callable[[Sample], Sample | None]) -> list[str]:
    return judged(samples(part, change), SETTLED, UNTIL)[1]


def test_steady_parts_break_nothing_and_all_are_judged() -> None:
    parts, found = judged(samples("SD15", lambda one: one), SETTLED, UNTIL)
    assert (found, {part.name for part in parts}) == ([], set(_PARTS))


def test_each_thing_that_grows_is_named() -> None:
    assert broken("SD15", lambda one: one.model_copy(update={"rss": 500 + one.at / 60})) == [
        "SD15: memory grew by 22.3 ± 0.0 MiB"
    ]
    assert broken("Router", lambda one: one.model_copy(update={"descriptors": 40 + int(one.at / 60)})) == [
        "Router: descriptors went from 49 to 67"
    ]
    assert broken("Router", lambda one: one.model_copy(update={"threads": 40 + int(one.at / 60)})) == [
        "Router: threads went from 49 to 67"
    ]


def test_what_grew_while_it_settled_does_not_count() -> None:
    assert broken("SD15", lambda one: one.model_copy(update={"rss": min(500.0, 300 + one.at)})) == []


def test_a_part_that_ends_or_comes_or_never_was_breaks_it() -> None:
    assert broken("SD15", lambda one: one if one.at < 900 else None) == [f"SD15 {_PARTS.index('SD15')}: came or went"]
    assert broken("SD15", lambda one: one if one.at > 900 else None) == [f"SD15 {_PARTS.index('SD15')}: came or went"]
    without = samples("SD15", lambda one: one)
    del without["SD15", _PARTS.index("SD15")]
    assert judged(without, SETTLED, UNTIL)[1] == ["SD15: no process"]
