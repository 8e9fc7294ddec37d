"""What kinds of work have cost of late, for routers that start anew."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table of costs."""
    op.create_table(
        "learned_costs",
        sa.Column("stage", sa.String(64), primary_key=True),
        sa.Column("sampler", sa.String(64), primary_key=True),
        sa.Column("pixels", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("work", sa.Float, nullable=False),
        sa.Column("device_s", sa.Float, nullable=False),
        sa.Column("lane_s", sa.Float, nullable=False),
        sa.Column("learned_at", sa.DateTime(timezone=True), nullable=False),
    )
