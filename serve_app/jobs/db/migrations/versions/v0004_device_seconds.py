"""Work in device seconds: what jobs are expected to take and have taken, and what API keys have spent."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the jobs' seconds, and create the table of what was spent."""
    op.add_column("jobs", sa.Column("work_s", sa.Float))
    op.add_column("jobs", sa.Column("device_s", sa.Float, nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("key_id", sa.String(64)))
    op.create_table(
        "spent",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("minute", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seconds", sa.Float, nullable=False),
    )
