"""The nodes of a simulated cluster over a time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.cluster.fake_cluster import FakeCluster

_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class SeenNodes:
    """What was seen.

    Attributes:
        types: of every node, by its id.
        most: nodes of each type at once.
    """

    types: dict[str, str] = field(default_factory=dict)
    most: Counter[str] = field(default_factory=Counter)

    def add(self, nodes: dict[str, str]) -> None:
        """Those that are there now."""
        self.types.update(nodes)
        self.most.update(Counter(nodes.values()) - self.most)


@asynccontextmanager
async def watched_nodes(cluster: FakeCluster) -> AsyncIterator[SeenNodes]:
    """The nodes that are there at any time while the block runs."""
    seen = SeenNodes()

    async def watch() -> None:
        while True:
            seen.add(await cluster.nodes())
            await asyncio.sleep(_PERIOD_S)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        try:
            yield seen
        finally:
            watching.cancel()
