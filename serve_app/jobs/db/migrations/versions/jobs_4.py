"""The registry: what was changed of models at run time."""

import sqlalchemy as sa
from alembic import op

revision = "jobs_4"
down_revision = "jobs_3"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "registry_entries",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(192), primary_key=True),
        sa.Column("content", sa.JSON, nullable=False),
    )
    op.create_table(
        "registry_changes",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("key_id", sa.String(64)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(192), nullable=False),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
    )
