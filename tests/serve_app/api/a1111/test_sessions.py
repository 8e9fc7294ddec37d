"""Desks are kept apart, and their number is bounded."""

from typing import Any

from serve_app.api.a1111.sessions import _MOST_CALLERS, Desks
from serve_app.jobs.job import Job, utc_now
from serve_app.jobs.states import JobState


def job(number: int) -> Job:
    fields: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    return Job(**{**fields, "id": f"{number:032x}", "state": JobState.QUEUED, "created_at": utc_now()})


def test_a_caller_finds_its_desk_again() -> None:
    desks = Desks()
    desks.of("me").model = "demo"
    assert desks.of("me").model == "demo"
    assert desks.of("you").model is None


def test_the_longest_silent_callers_are_forgotten_but_none_at_work() -> None:
    desks = Desks()
    desks.of("first").model = "a"
    working = desks.of("working")
    with working.working(job(1), None):
        for number in range(_MOST_CALLERS):
            desks.of(str(number))
        assert desks.of("working") is working
        assert desks.of("first").model is None
        assert len(desks._desks) <= _MOST_CALLERS + 1


def test_one_task_id_used_twice() -> None:
    desk = Desks().of("me")
    with desk.working(job(1), "task"):
        with desk.working(job(2), "task"):
            assert desk.job_of("task") == desk.jobs[f"{2:032x}"]
        assert "task" in desk.ended
        assert list(desk.jobs) == [f"{1:032x}"]
    assert not desk.jobs
    assert desk.job_of("task") is None


def test_what_was_interrupted_is_forgotten_when_work_begins_anew() -> None:
    desk = Desks().of("me")
    with desk.working(job(1), None):
        desk.interrupted = True
        with desk.working(job(2), None):
            assert desk.interrupted
    assert desk.interrupted
    with desk.working(job(3), None):
        assert not desk.interrupted
