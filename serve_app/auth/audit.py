"""The audit log: who asked for what, and what became of it. A line for each request of a key, and for each refusal.

No prompts, no keys, no bodies, no queries: a route is named as the table writes it, a key by its id. The lines go where
the others go (logs.py), under the logger `darkroom.audit`.
"""

from collections.abc import Sequence

from serve_app.auth.caller import Caller
from serve_app.observability.logs import get_logger

log = get_logger("darkroom.audit")

# how the answer to a client that left before it began is told
NO_ANSWER = 0


def record(
    caller: Caller, *, method: str, route: str, status: int, code: str | None, jobs: Sequence[str], address: str
) -> None:
    """Write one line. status: of the answer. code: of the refusal, where the guard refused. jobs: it was about."""
    line = log.info if code is None else log.warning
    line(
        "refused" if code is not None else "served",
        tenant=caller.tenant,
        key=None if caller.key is None else caller.key.id,
        method=method,
        route=route,
        status=status,
        code=code,
        jobs=list(jobs),
        address=address,
    )
