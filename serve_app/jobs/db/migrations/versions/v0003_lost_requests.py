"""Jobs that a lost connection left to the client's next try."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table of lost requests."""
    op.create_table(
        "lost_requests",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("lost_requests_by_fingerprint", "lost_requests", ["fingerprint", "job_id"])
