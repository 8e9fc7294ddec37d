"""A configuration file with another laid over it (`darkroom config merge`).

The other has the same form and names only what differs. Ray Serve has nothing of the kind, and a copy of a shipped file
goes stale.
"""

from pathlib import Path
from typing import Any

import yaml

from serve_app.config.check import ConfigError


def merged(base: Path, *overlays: Path) -> str:
    """The file `base` with each overlay over it, as YAML without comments; check_config says whether it is right.

    Raises:
        ConfigError: a file is no YAML mapping.
    """
    content = _read(base)
    for path in overlays:
        content = _laid_over(content, _read(path))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> Any:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: invalid YAML: {error}"]) from None
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: expected keys and values at the top"])
    return content


def _laid_over(base: Any, overlay: Any, key: str = "") -> Any:
    """Mappings merge key by key, and so does the one application; any other value takes the place of the base's."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        return base | {name: _laid_over(base.get(name), value, name) for name, value in overlay.items()}
    if key == "applications" and isinstance(base, list) and isinstance(overlay, list) and len(base) == len(overlay):
        return [_laid_over(below, above) for below, above in zip(base, overlay, strict=True)]
    return overlay
