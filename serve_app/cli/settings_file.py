"""The settings that a configuration file holds. Knows nothing of what they are for."""

from pathlib import Path

from serve_app.cli.failure import Failure
from serve_app.config.check import ConfigError, check_config
from serve_app.config.settings import Settings


def read_settings(path: Path) -> Settings:
    """The service's settings in `path`. Raises Failure with every problem and its line."""
    try:
        return check_config(path).applications[0].args
    except (ConfigError, OSError) as error:
        raise Failure("invalid_config", str(error)) from None
