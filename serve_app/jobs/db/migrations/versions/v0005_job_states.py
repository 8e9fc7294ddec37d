"""Where the images of unfinished jobs are: lanes' states and hand-overs between stages."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table of states."""
    op.create_table(
        "job_states",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("image", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
