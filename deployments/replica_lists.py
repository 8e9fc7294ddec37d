"""The running replicas of each deployment that this process has a handle of, as Serve's controller last said.

Serve makes the request routers (replica_router.py) itself, each in a thread of its own; this module is where they
leave what they hear, for whoever chooses replicas.
"""

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple


class DeploymentKey(NamedTuple):
    """A deployment of an application."""

    app: str
    name: str


Replicas = Mapping[str, frozenset[str]]
"""The checkpoints that each replica advertises, by Serve's unique id of the replica."""

_lock = threading.Lock()
_lists: dict[DeploymentKey, Replicas] = {}
_listeners: dict[DeploymentKey, list[Callable[[], None]]] = {}


def publish(key: DeploymentKey, replicas: Replicas) -> None:
    """These replicas run now; tells the listeners, in the calling thread."""
    with _lock:
        if _lists.get(key) == replicas:
            return
        _lists[key] = replicas
        listeners = list(_listeners.get(key, ()))
    for listener in listeners:
        listener()


def running(key: DeploymentKey) -> Replicas | None:
    """The replicas of a deployment; None while nobody has said, as before the first call and without a cluster."""
    with _lock:
        return _lists.get(key)


def listen(key: DeploymentKey, listener: Callable[[], None]) -> None:
    """Have `listener` called, from any thread, when the replicas of a deployment change."""
    with _lock:
        _listeners.setdefault(key, []).append(listener)


def forget(key: DeploymentKey, listener: Callable[[], None]) -> None:
    """Take back a `listen`."""
    with _lock:
        _listeners[key].remove(listener)
