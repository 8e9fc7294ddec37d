import pytest

from serve_app.jobs.states import ENDS, TRANSITIONS, UNFINISHED, JobState, move


def test_every_state_is_unfinished_or_an_end() -> None:
    assert frozenset(JobState) == ENDS | UNFINISHED
    assert not ENDS & UNFINISHED
    assert set(TRANSITIONS) == set(JobState)


@pytest.mark.parametrize("state", JobState)
def test_nothing_follows_an_end(state: JobState) -> None:
    assert state.terminal == (state in ENDS)
    assert (TRANSITIONS[state] == frozenset()) == (state in ENDS)


def test_every_state_can_be_reached_from_queued() -> None:
    reached, edge = {JobState.QUEUED}, {JobState.QUEUED}
    while edge:
        edge = {target for state in edge for target in TRANSITIONS[state]} - reached
        reached |= edge
    assert reached == set(JobState)


@pytest.mark.parametrize("source", JobState)
@pytest.mark.parametrize("target", JobState)
def test_move_allows_what_the_table_allows(source: JobState, target: JobState) -> None:
    if target in TRANSITIONS[source]:
        assert move(source, target) is target
    else:
        with pytest.raises(ValueError, match=f"from {source} to {target}"):
            move(source, target)
