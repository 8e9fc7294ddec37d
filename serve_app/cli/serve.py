"""`darkroom serve` and `darkroom bench`: check what there is to check, then run another command."""

import os
import secrets
import shlex
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import serve_app
from serve_app.cli.options import DEFAULT_CONFIG, Config
from serve_app.cli.output import Failure, reporting, say

# Ray's environment variables on one machine; what the shell sets wins
RAY_SETTINGS: Mapping[str, str] = {
    # a laptop start: no usage pings, no second environment for the workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray runs its workers at nice 15; here they do the work, so they get normal priority
    "RAY_worker_niceness": "0",
    # Serve's controller wakes ten times a second, which on two cores slows every image
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # each replica gives its metrics to Ray's agent ten times a second, which exports them every ten seconds
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    # on a busy machine the dashboard may need more than Ray's 60 s to start, and the proxy more than 3 x 5 s
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Serve warns of replicas that take longer; loading a large checkpoint does, and it is no fault
    "RAY_SERVE_SLOW_STARTUP_WARNING_S": "300",
}

if TYPE_CHECKING:
    from serve_app.cli.service_process import Addresses

_TOKEN = Path(".ray") / "auth_token"


def serve(config: Config = DEFAULT_CONFIG) -> None:
    """Check the configuration and start the service; Ctrl-C stops it."""
    with reporting(as_json=False):
        from serve_app.cli.service_process import run_service

        addresses = checked_addresses(config)
        environment = ray_environment(os.environ, Path.cwd())
        run = Path(sysconfig.get_path("scripts")) / "serve"
        say(f"Starting {config}: Ray first (about 10 s), then one process per stage loads its checkpoints.")
        say(other_shells(run, environment))
        # of its own, not whichever runs on this machine
        cluster = [] if "RAY_ADDRESS" in environment else ["--address", "local"]
        raise typer.Exit(run_service([str(run), "run", *cluster, str(config)], environment, addresses))


def other_shells(run: Path, environment: Mapping[str, str]) -> str:
    """What another shell needs so that Ray's tools may talk to this service. run: the command `serve`."""
    names = [name for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH") if name in environment]
    settings = " ".join(f"{name}={shlex.quote(environment[name])}" for name in names)
    return f"From another shell: {settings} {shlex.quote(str(run))} status    (or `deploy FILE` in place of `status`)"


def checked_addresses(path: Path) -> "Addresses":
    """The addresses of a service with this configuration. Raises Failure if it can't start."""
    from serve_app.cli.service_process import Addresses
    from serve_app.config.check import ConfigError, check_start

    try:
        file = check_start(path)
    except (ConfigError, OSError) as error:
        raise Failure("invalid_config", str(error)) from None
    options, prefix = file.http_options, file.applications[0].route_prefix.rstrip("/")
    scheme = "http" if options.ssl_certfile is None else "https"
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # noqa: S104  # compared, not bound
    host = f"[{here}]" if ":" in here else here
    return Addresses(
        page=f"{scheme}://{host}:{options.port}{options.root_path.rstrip('/')}{prefix}/",
        ready=f"{scheme}://{host}:{options.port}{prefix}/ready",
    )


def ray_environment(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`environment` with RAY_SETTINGS and with a token for Ray's ports, unless it sets them otherwise.

    Ray's ports listen on every interface, and who may connect to them may run code. The token is kept in `folder`, and
    created if needed, so that it neither needs nor changes the one in the home folder. Another shell's
    `serve status` or `ray status` needs the two variables of the token (`other_shells`).
    """
    path = folder / _TOKEN
    if "RAY_AUTH_TOKEN_PATH" not in environment:
        _create_token(path)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), **RAY_SETTINGS, **environment}


def _create_token(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(32)}\n")


def bench(context: typer.Context) -> None:
    """Measure Darkroom beside other servers. The options are those of benchmarks.peers (see --help)."""
    with reporting(as_json=False):
        checkout = Path(serve_app.__file__).resolve().parent.parent
        command, environment = bench_command(checkout, context.args)
        os.execve(command[0], command, environment)  # noqa: S606  # no shell is wanted


def bench_command(checkout: Path, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The benchmark's command and its environment. Raises Failure if `checkout` has no benchmarks."""
    if not (checkout / "benchmarks" / "peers").is_dir():
        raise Failure(
            "no_benchmarks",
            "the benchmarks are in Darkroom's repository, not in its package: run this in a checkout after `make test`",
        )
    # not by this process's path, which may have another package called benchmarks
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-m", "benchmarks.peers", *arguments], {**os.environ, "PYTHONPATH": path}
