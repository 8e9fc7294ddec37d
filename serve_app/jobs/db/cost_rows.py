"""The learned costs of kinds of work, which routers share: one row for each kind, the latest that was learned."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.estimation.cost_model import LearnedCost
from serve_app.jobs.db.database import Transactions, reads, writes
from serve_app.jobs.db.schema import learned_costs

# a cost that was learned longer ago is deleted
_KEPT = timedelta(days=30)


class CostStore(Transactions):
    """Each method raises StoreUnavailable."""

    @writes
    def keep(self, connection: Connection, costs: Sequence[LearnedCost]) -> None:
        """Replace the costs of these kinds, and delete old ones."""
        now = self._clock()
        connection.execute(delete(learned_costs).where(learned_costs.c.learned_at < now - _KEPT))
        if not costs:
            return
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = insert(learned_costs)
        latest = {name: row.excluded[name] for name in ("device_s", "lane_s", "learned_at")}
        rows = [
            {
                "stage": cost.stage,
                "sampler": cost.sampler,
                "pixels": cost.pixels,
                "device_s": cost.device_s,
                "lane_s": cost.lane_s,
                "learned_at": now,
            }
            # always in this order: two routers that write the same rows must not wait for each other
            for cost in sorted(costs, key=lambda cost: (cost.stage, cost.sampler, cost.pixels))
        ]
        connection.execute(row.on_conflict_do_update(index_elements=list(learned_costs.primary_key), set_=latest), rows)

    @reads
    def load(self, connection: Connection) -> tuple[LearnedCost, ...]:
        """All costs that aren't old, the latest last."""
        fresh = learned_costs.c.learned_at >= self._clock() - _KEPT
        rows = connection.execute(select(learned_costs).where(fresh).order_by(learned_costs.c.learned_at))
        return tuple(LearnedCost(row.stage, row.sampler, row.pixels, row.device_s, row.lane_s) for row in rows)
