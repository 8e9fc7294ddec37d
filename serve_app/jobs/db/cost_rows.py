"""The rows in which routers leave each other what kinds of work have cost: one for each kind, the latest word on it.

What nobody has confirmed for a month is forgotten. Knows nothing of what the numbers are for.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.estimation.cost_model import LearnedCost
from serve_app.jobs.db.schema import learned_costs

_KEPT = timedelta(days=30)


def keep(connection: Connection, costs: Sequence[LearnedCost], now: datetime) -> None:
    """Put these in the place of what was known of the same kinds, and forget what is old."""
    connection.execute(delete(learned_costs).where(learned_costs.c.learned_at < now - _KEPT))
    if not costs:
        return
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = insert(learned_costs)
    kind = [learned_costs.c.stage, learned_costs.c.sampler, learned_costs.c.pixels]
    latest = {name: row.excluded[name] for name in ("work", "device_s", "lane_s", "learned_at")}
    rows = [
        {
            "stage": cost.stage,
            "sampler": cost.sampler,
            "pixels": cost.pixels,
            "work": cost.work,
            "device_s": cost.device_s,
            "lane_s": cost.lane_s,
            "learned_at": now,
        }
        # always in this order: two routers that write the same rows must not wait for each other
        for cost in sorted(costs, key=lambda cost: (cost.stage, cost.sampler, cost.pixels))
    ]
    connection.execute(row.on_conflict_do_update(index_elements=kind, set_=latest), rows)


def load(connection: Connection, now: datetime) -> tuple[LearnedCost, ...]:
    """All that isn't old, the latest last."""
    rows = connection.execute(
        select(learned_costs).where(learned_costs.c.learned_at >= now - _KEPT).order_by(learned_costs.c.learned_at)
    )
    return tuple(LearnedCost(row.stage, row.sampler, row.pixels, row.work, row.device_s, row.lane_s) for row in rows)
