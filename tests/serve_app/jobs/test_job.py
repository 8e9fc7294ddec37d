from datetime import UTC, datetime, timedelta
from itertools import pairwise

from serve_app.jobs.job import JobIds, is_job_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_ids_sort_by_creation_even_in_one_millisecond() -> None:
    ids = JobIds()
    made = [ids.new(NOW) for _ in range(1000)]
    made += [ids.new(NOW + timedelta(milliseconds=index)) for index in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(is_job_id(job_id) for job_id in made)


def test_ids_keep_their_order_when_the_clock_goes_back() -> None:
    ids = JobIds()
    assert ids.new(NOW) < ids.new(NOW - timedelta(days=1)) < ids.new(NOW)


def test_ids_of_two_processes_differ() -> None:
    assert len({JobIds().new(NOW) for _ in range(1000)}) == 1000


def test_what_is_no_id() -> None:
    good = JobIds().new(NOW)
    for text in ("", good[:-1], good + "0", good.upper(), good + "\n", " " + good[1:], "../" + good[3:], "\u0661" * 32):
        assert not is_job_id(text)


def test_an_id_is_not_guessed_from_the_one_before() -> None:
    ids = JobIds()
    numbers = [int(ids.new(NOW), 16) for _ in range(1000)]
    gaps = [after - before for before, after in pairwise(numbers)]
    assert len(set(gaps)) == len(gaps)
    assert sum(gap > 1 << 34 for gap in gaps) > 900  # of 40 random bits: 984 on the average
