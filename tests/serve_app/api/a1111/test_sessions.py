"""CallerSessions are kept apart, and their number is bounded."""

from typing import Any

from serve_app.api.a1111.sessions import _MOST_CALLERS, CallerSessions
from serve_app.jobs.job import Job, utc_now
from serve_app.jobs.states import JobState


def job(number: int) -> Job:
    fields: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    return Job(**{**fields, "id": f"{number:032x}", "state": JobState.QUEUED, "created_at": utc_now()})


def test_a_caller_finds_its_desk_again() -> None:
    sessions = CallerSessions()
    sessions.of("me").model = "demo"
    assert sessions.of("me").model == "demo"
    assert sessions.of("you").model is None


def test_the_longest_silent_callers_are_forgotten_but_none_at_work() -> None:
    sessions = CallerSessions()
    sessions.of("first").model = "a"
    working = sessions.of("working")
    with working.working(job(1), None):
        for number in range(_MOST_CALLERS):
            sessions.of(str(number))
        assert sessions.of("working") is working
        assert sessions.of("first").model is None
        assert len(sessions._sessions) <= _MOST_CALLERS + 1


def test_one_task_id_used_twice() -> None:
    session = CallerSessions().of("me")
    with session.working(job(1), "task"):
        with session.working(job(2), "task"):
            assert session.job_of("task") == session.jobs[f"{2:032x}"]
        assert "task" in session.ended
        assert list(session.jobs) == [f"{1:032x}"]
    assert not session.jobs
    assert session.job_of("task") is None


def test_what_was_interrupted_is_forgotten_when_work_begins_anew() -> None:
    session = CallerSessions().of("me")
    with session.working(job(1), None):
        session.interrupted = True
        with session.working(job(2), None):
            assert session.interrupted
    assert session.interrupted
    with session.working(job(3), None):
        assert not session.interrupted
