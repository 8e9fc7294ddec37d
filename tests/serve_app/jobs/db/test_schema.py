from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.jobs.db.schema import UtcDateTime


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()])
def test_moments_are_utc_whatever_the_database_keeps(dialect: object) -> None:
    kind = UtcDateTime()
    moment = datetime(2026, 5, 1, 12, 0, tzinfo=timezone(timedelta(hours=5)))
    stored = kind.process_bind_param(moment, dialect)  # type: ignore[arg-type]
    assert stored == moment
    assert stored is not None
    assert stored.tzinfo is UTC
    assert kind.process_result_value(stored.replace(tzinfo=None), dialect) == moment  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time zone"):
        kind.process_bind_param(datetime(2026, 5, 1), dialect)  # type: ignore[arg-type]
