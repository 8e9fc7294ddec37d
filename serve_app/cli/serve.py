"""`darkroom serve`: checks the configuration, then becomes `serve run`."""

import os
import sys
import sysconfig
from pathlib import Path

from serve_app.cli.failure import Failure
from serve_app.cli.options import DEFAULT_CONFIG, Config
from serve_app.cli.ray_environment import ray_environment
from serve_app.cli.terminal import reporting, say


def serve(config: Config = DEFAULT_CONFIG) -> None:
    """Check the configuration and start the service; Ctrl-C stops it."""
    with reporting(as_json=False):
        address = checked(config)
        environment = ray_environment(os.environ, Path.cwd())
        run = Path(sysconfig.get_path("scripts")) / "serve"
        say(f"Starting {config}: Ray first (about 10 s), then one process per stage loads its checkpoints.")
        say(f"{address}/ready answers 200 when every stage can serve; Ctrl-C stops it all.")
        sys.stderr.flush()
        os.execve(run, [str(run), "run", str(config)], environment)  # noqa: S606  # no shell is wanted


def checked(path: Path) -> str:
    """The address that the service will listen on. Raises Failure if it can't start with this file."""
    from serve_app.config.check import ConfigError, check_start

    try:
        file = check_start(path)
    except (ConfigError, OSError) as error:
        raise Failure("invalid_config", str(error)) from None
    scheme = "http" if file.http_options.ssl_certfile is None else "https"
    return f"{scheme}://{file.http_options.host}:{file.http_options.port}"
