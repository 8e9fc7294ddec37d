"""Brings a job database up to the tables of schema.py, through alembic's steps in migrations/versions.

An empty database takes all steps, one of an older version those that it lacks, and one that is newer than this
software is refused. A change of schema.py needs a new step: a test compares the two.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

_FOLDER = Path(__file__).parent / "migrations"

# what software before alembic kept its version in; it knew one version, which is the first step's
_OLD_VERSIONS = "schema_version"
_FIRST = "0001"


class NewerDatabase(RuntimeError):
    """The database was written by a newer version of the software."""


def migrate(connection: Connection, folder: Path = _FOLDER) -> None:
    """Take the steps that the database lacks. To be called in a transaction that keeps others out.

    folder: with env.py and versions/. Raises NewerDatabase; then nothing was changed.
    """
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(folder).replace("%", "%%"))  # it has configparser's manners
    steps = ScriptDirectory.from_config(config)
    found = set(MigrationContext.configure(connection).get_current_heads())
    if found - {step.revision for step in steps.walk_revisions()}:
        raise NewerDatabase(f"the job database has version {'+'.join(sorted(found))}, which this software doesn't know")
    if found == set(steps.get_heads()):
        return
    if not found and inspect(connection).has_table(_OLD_VERSIONS):
        version = connection.execute(text(f"SELECT version FROM {_OLD_VERSIONS}")).scalar_one()  # noqa: S608
        if version != 1:
            raise NewerDatabase(f"the job database has version {version} of a software that isn't this one")
        command.stamp(config, _FIRST)
        connection.execute(text(f"DROP TABLE {_OLD_VERSIONS}"))
    command.upgrade(config, "head")
