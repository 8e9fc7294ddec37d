"""What tenants used, by day."""

import sqlalchemy as sa
from alembic import op

revision = "jobs_2"
down_revision = "jobs_1"

_ZERO = sa.text("0")


def upgrade() -> None:
    """Create the table; it counts from now on."""
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("device_s", sa.Float, nullable=False, server_default=_ZERO),
        sa.Column("images", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("refusals", sa.Integer, nullable=False, server_default=_ZERO),
    )
