"""Brings a job database up to the tables of schema.py, by alembic's steps in versions/.

An empty database takes all steps, one of an older version those that it lacks, and one of a version that isn't among
the steps is refused. A change of schema.py needs a new step: a test compares the two.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_FOLDER = Path(__file__).parent


class UnknownVersion(RuntimeError):
    """Another version of the software wrote the database, which this one doesn't know."""


def migrate(connection: Connection, folder: Path = _FOLDER) -> None:
    """Take the steps that the database lacks, in a transaction that keeps others out.

    Args:
        connection: In that transaction.
        folder: With env.py and versions/.

    Raises:
        UnknownVersion: It has a version that isn't among the steps; nothing was changed.
    """
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(folder).replace("%", "%%"))  # configparser would expand a single one
    steps = ScriptDirectory.from_config(config)
    versions = set(MigrationContext.configure(connection).get_current_heads())
    unknown = versions - {step.revision for step in steps.walk_revisions()}
    if unknown:
        raise UnknownVersion(
            f"the job database has version {'+'.join(sorted(unknown))}, which this software doesn't know; it was "
            "written by another version: delete it or use that version"
        )
    if versions != set(steps.get_heads()):
        command.upgrade(config, "head")
