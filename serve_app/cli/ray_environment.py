"""What Ray is told before a service starts on one machine, by the only way that Ray takes it: environment variables.

`darkroom serve`, and so `make serve`, sets them unless the shell has set them to something else. (Another shell's
`serve status` or `ray status` needs the first two.) Knows no service and no configuration.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

QUIET: Mapping[str, str] = {
    # a laptop start: no usage pings, no second environment for the workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray runs its workers at nice 15; here they are the work: as nice as anything else on the machine
    "RAY_worker_niceness": "0",
    # Serve's controller looks at everything ten times a second; on two cores that is felt in every image
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # a busy machine is slow, not broken: Ray gives its dashboard 60 s and its proxy 3 x 5 s to start, then gives up
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
"""Whoever may connect to Ray, these hold."""

_TOKEN = Path(".ray") / "auth_token"


def ray_environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`given`, completed: QUIET, and a token that Ray's own ports ask for.

    They listen on every interface, and who may connect to them may run code, on a laptop too. The token is the
    folder's own, so that it neither needs nor changes the one in the home folder; it is made if it is to be used.
    """
    path = folder / _TOKEN
    if "RAY_AUTH_TOKEN_PATH" not in given:
        _make_token(path)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), **QUIET, **given}


def _make_token(path: Path) -> None:
    """A secret of its own for this folder's Ray, unless it has one."""
    path.parent.mkdir(exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(32)}\n")
