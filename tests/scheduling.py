"""Which tests must stay together when several processes share them (pytest-xdist)."""

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling


class ByModule(LoadScopeScheduling):
    """A module is one piece of work; those marked `ray` are one together, because they share a cluster.

    (xdist's own groups, 3.8's, are lost on pytest 9.2: it renames tests by an attribute that nothing reads any more.)
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "ray" if _shares_the_cluster(module) else module


@cache
def _shares_the_cluster(module: str) -> bool:
    return "pytest.mark.ray" in Path(module).read_text(encoding="utf-8")
