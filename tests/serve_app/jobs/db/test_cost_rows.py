"""What routers leave each other of the costs that they have learned, on every kind of database."""

import asyncio

from serve_app.estimation.cost_model import LearnedCost
from serve_app.jobs.db.store import JobStore
from tests.serve_app.clock import Clock

DAY_S = 86_400.0


def cost(sampler: str, device_s: float, stage: str = "sd15", pixels: int = 65_536) -> LearnedCost:
    return LearnedCost(stage, sampler, pixels, device_s, device_s * 2)


async def test_the_latest_word_on_each_kind_counts_whoever_wrote_it(
    store: JobStore, other_store: JobStore, clock: Clock
) -> None:
    assert await store.costs.load() == ()
    await store.costs.keep([cost("heun", 1.0), cost("euler", 2.0), cost("", 0.5, pixels=0)])
    clock.forward(60)
    await other_store.costs.keep([cost("euler", 3.0), cost("euler", 4.0, stage="sdxl_base")])
    found = await store.costs.load()
    assert set(found) == {
        cost("heun", 1.0),
        cost("", 0.5, pixels=0),
        cost("euler", 3.0),
        cost("euler", 4.0, stage="sdxl_base"),
    }
    assert {one.sampler for one in found[2:]} == {"euler"}, "the latest last"


async def test_what_nobody_confirms_is_forgotten(store: JobStore, clock: Clock) -> None:
    await store.costs.keep([cost("heun", 1.0), cost("euler", 2.0)])
    clock.forward(20 * DAY_S)
    await store.costs.keep([cost("euler", 2.0)])
    clock.forward(11 * DAY_S)
    assert await store.costs.load() == (cost("euler", 2.0),)
    await store.costs.keep([])
    clock.forward(-20 * DAY_S)
    assert await store.costs.load() == (cost("euler", 2.0),), "and not only hidden"


async def test_routers_that_write_the_same_kinds_at_once_end(store: JobStore, other_store: JobStore) -> None:
    kinds = [cost(f"sampler {number}", float(number + 1)) for number in range(30)]
    await asyncio.gather(
        *((store, other_store)[turn % 2].costs.keep(kinds[:: 1 if turn % 4 < 2 else -1]) for turn in range(8))
    )
    assert sorted(await store.costs.load(), key=lambda one: one.device_s) == kinds
