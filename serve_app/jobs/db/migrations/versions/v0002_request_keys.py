"""Idempotency keys: which request became which job."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table of request keys."""
    op.create_table(
        "request_keys",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("body", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
    )
    op.create_index("request_keys_by_job", "request_keys", ["job_id"])
