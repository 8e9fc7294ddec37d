"""Footprints that were traced before, on this machine: a trace takes seconds of a processor, at every start.

In `$XDG_CACHE_HOME/darkroom/footprints`, a small file for each; whatever a footprint follows from is in its name. Where
nothing can be kept, each process traces for itself. Knows nothing of how a footprint is found.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch

from deployments.engine.memory.footprint import Footprint

logger = logging.getLogger(__name__)

# what finds them: changed, it finds others
_SOURCES = (
    "memory/footprint_tracing.py",
    "memory/footprint.py",
    "memory/peak_tracing.py",
    "memory/offload.py",
    "attention.py",
    "unet.py",
    "quantization.py",
    "conditioning/controlnet_weights.py",
    "types.py",
)


def kept(of: Sequence[object], trace: Callable[[], Footprint]) -> Footprint:
    """What `trace` found when it was last asked about `of`, which str() tells apart; else what it finds now."""
    path = _folder() / f"{_digest(of)}.json"
    try:
        return _read(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s can't be used (%s): traced again", path, error)
    found = trace()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(asdict(found), file)
        Path(file.name).replace(path)
    except OSError as error:
        logger.info("%s can't be written (%s): the next process traces again", path, error)
    return found


def _read(text: str) -> Footprint:
    known = json.loads(text)
    points = {name: tuple((int(cells), int(size)) for cells, size in known[name]) for name in _POINTS}
    return Footprint(**known | points)


_POINTS = ("steps", "alone", "decodes")


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "darkroom" / "footprints"


def _digest(of: Sequence[object]) -> str:
    digest = hashlib.sha256("\n".join(map(str, [*of, torch.__version__, diffusers.__version__])).encode())
    for name in _SOURCES:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()[:32]
