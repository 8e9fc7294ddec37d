"""Whether Serve has begun to end this replica.

Serve 2.60 tells a replica nothing of it before its last request has ended (then it calls `__del__`), asks for its
health no more, and kills it after graceful_shutdown_timeout_s, without `__del__`. So its own note is read here, by
names that aren't public: Ray is pinned to the minor version, and a test on a real cluster holds the names.
"""

from ray._private.worker import global_worker


def leaving() -> bool:
    """Serve has taken this replica off its lists, and waits for the requests in flight. To be asked in a replica."""
    replica = global_worker.actors[global_worker.actor_id]
    begun: bool = replica._replica_impl._shutting_down
    return begun
