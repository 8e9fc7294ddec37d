"""`darkroom serve`: checks the configuration, then becomes `serve run`, with the environment that `make serve` sets."""

import os
import secrets
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from serve_app.cli.failure import Failure
from serve_app.cli.options import DEFAULT_CONFIG, Config
from serve_app.cli.terminal import reporting, say

# why each of them: the Makefile, which says the same
RAY_DEFAULTS: Mapping[str, str] = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": str(Path(".ray") / "auth_token"),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def serve(config: Config = DEFAULT_CONFIG) -> None:
    """Check the configuration and start the service; Ctrl-C stops it."""
    with reporting(as_json=False):
        address = checked(config)
        environment = serve_environment(os.environ, Path.cwd())
        run = Path(sysconfig.get_path("scripts")) / "serve"
        say(f"Starting {config}: Ray first (about 10 s), then one process per stage loads its checkpoints.")
        say(f"{address}/ready answers 200 when every stage can serve; Ctrl-C stops it all.")
        sys.stderr.flush()
        os.execve(run, [str(run), "run", str(config)], environment)  # noqa: S606  # no shell is wanted


def checked(path: Path) -> str:
    """The address that the service will listen on. Raises Failure if it can't start with this file."""
    from serve_app.config_check import ConfigError, check_start

    try:
        file = check_start(path)
    except (ConfigError, OSError) as error:
        raise Failure("invalid_config", str(error)) from None
    scheme = "http" if file.http_options.ssl_certfile is None else "https"
    return f"{scheme}://{file.http_options.host}:{file.http_options.port}"


def serve_environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`given`, completed by RAY_DEFAULTS; the token file under `folder` is made if it is the one to be used."""
    environment = {**RAY_DEFAULTS, "RAY_AUTH_TOKEN_PATH": str(folder / RAY_DEFAULTS["RAY_AUTH_TOKEN_PATH"]), **given}
    if "RAY_AUTH_TOKEN_PATH" not in given:
        _make_token(Path(environment["RAY_AUTH_TOKEN_PATH"]))
    return environment


def _make_token(path: Path) -> None:
    """A secret of its own for this folder's Ray, unless it has one."""
    path.parent.mkdir(exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(32)}\n")
