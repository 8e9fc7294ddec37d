"""The tables of the first version."""

import sqlalchemy as sa
from alembic import op

revision = "jobs_1"
down_revision = None

_MOMENT = sa.DateTime(timezone=True)
_ZERO = sa.text("0")


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("step", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("steps", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("images_done", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("finished_at", _MOMENT),
        sa.Column("owner", sa.String(128)),
        sa.Column("fence", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("lease_until", _MOMENT),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("work_s", sa.Float),
        sa.Column("device_s", sa.Float, nullable=False, server_default=_ZERO),
        sa.Column("key_id", sa.String(64)),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "id"])
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "id"])
    op.create_index("jobs_by_lease", "jobs", ["state", "lease_until"])
    op.create_index("jobs_by_end", "jobs", ["finished_at"])
    op.create_table(
        "request_keys",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("body", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
    )
    op.create_index("request_keys_by_job", "request_keys", ["job_id"])
    op.create_table(
        "lost_requests",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("until", _MOMENT, nullable=False),
    )
    op.create_index("lost_requests_by_fingerprint", "lost_requests", ["fingerprint", "job_id"])
    op.create_table(
        "spent",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("minute", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.create_table(
        "job_states",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("image", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "learned_costs",
        sa.Column("stage", sa.String(64), primary_key=True),
        sa.Column("sampler", sa.String(64), primary_key=True),
        sa.Column("pixels", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("device_s", sa.Float, nullable=False),
        sa.Column("lane_s", sa.Float, nullable=False),
        sa.Column("learned_at", _MOMENT, nullable=False),
    )
    op.create_table(
        "webhooks",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("root", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=_ZERO),
        sa.Column("due_at", _MOMENT, nullable=False),
    )
    op.create_index("webhooks_by_due", "webhooks", ["due_at"])
