"""Batches, their lines and files."""

import sqlalchemy as sa
from alembic import op

revision = "jobs_3"
down_revision = "jobs_2"

_MOMENT = sa.DateTime(timezone=True)
_ZERO = sa.text("0")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "files",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT),
    )
    op.create_index("files_by_tenant", "files", ["tenant", "id"])
    op.create_index("files_by_expiry", "files", ["expires_at"])
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("key_id", sa.String(64)),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("problems", sa.JSON),
        sa.Column("total", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("completed", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("failed", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("device_s", sa.Float, nullable=False, server_default=_ZERO),
        sa.Column("output_file", sa.String(32)),
        sa.Column("error_file", sa.String(32)),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT, nullable=False),
        sa.Column("begun_at", _MOMENT),
        sa.Column("closed_at", _MOMENT),
        sa.Column("ended_at", _MOMENT),
        sa.Column("owner", sa.String(128)),
        sa.Column("fence", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("lease_until", _MOMENT),
    )
    op.create_index("batches_by_tenant", "batches", ["tenant", "id"])
    op.create_index("batches_by_lease", "batches", ["state", "lease_until"])
    op.create_index("batches_by_end", "batches", ["ended_at"])
    op.create_index("batches_by_input", "batches", ["input_file"])
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.String(32), primary_key=True),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("job_id", sa.String(32)),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("error_field", sa.String(255)),
    )
    op.create_index("batch_lines_by_job", "batch_lines", ["job_id"])
