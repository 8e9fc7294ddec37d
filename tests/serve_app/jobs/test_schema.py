from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, select
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.jobs.schema import MIGRATIONS, VERSION, NewerDatabase, UtcDateTime, jobs, migrate, schema_version


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return create_engine(f"sqlite:///{tmp_path}/jobs.db")


def version_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(schema_version.c.version)).scalar_one()


def test_a_new_database_gets_all_tables_and_the_version(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection)
        migrate(connection)
    assert version_of(engine) == VERSION
    assert {column["name"] for column in inspect(engine).get_columns("jobs")} == set(jobs.columns.keys())
    engine.dispose()


def test_an_older_database_takes_every_step_once(engine: Engine) -> None:
    steps = {
        2: ["ALTER TABLE jobs ADD COLUMN one INTEGER"],
        3: ["ALTER TABLE jobs ADD COLUMN two INTEGER", "CREATE INDEX jobs_by_two ON jobs (two)"],
    }
    with engine.begin() as connection:
        migrate(connection, 1, {})
    for _ in range(2):
        with engine.begin() as connection:
            migrate(connection, 3, steps)
    assert version_of(engine) == 3
    assert {"one", "two"} <= {column["name"] for column in inspect(engine).get_columns("jobs")}
    engine.dispose()


def test_a_newer_database_is_refused_and_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection, VERSION + 1, {VERSION + 1: []})
    with pytest.raises(NewerDatabase), engine.begin() as connection:
        migrate(connection)
    assert version_of(engine) == VERSION + 1
    engine.dispose()


def test_no_migration_is_missing() -> None:
    assert set(MIGRATIONS) == set(range(2, VERSION + 1))


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
