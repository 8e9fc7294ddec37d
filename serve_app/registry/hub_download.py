"""The Hugging Face hub, for models that are added: each call is a process, which ends with whoever waits for it."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deployments.engine.checkpoints.files import HubFile
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.errors import CheckpointError
from serve_app.config import hub_checkpoints

_POLL_S = 0.1


async def look_up(spec: CheckpointSpec) -> tuple[HubFile, ...]:
    """What a checkpoint needs of its repository. Raises CheckpointError: it can't be had."""
    return tuple(HubFile(**file) for file in await _called("look-up", spec))


async def download(spec: CheckpointSpec) -> Path:
    """Bring that into the cache; goes on from what is there.

    Several processes may do so at once: one of them downloads a file, the others wait for it.

    Returns:
        The folder of the repository's commit there.

    Raises:
        CheckpointError: it can't be had.
    """
    return Path(await _called("download", spec))


async def _called(command: str, spec: CheckpointSpec) -> Any:
    with tempfile.TemporaryFile() as output:  # (a pipe would have to be read meanwhile)
        process = subprocess.Popen(  # noqa: ASYNC220, S603  # (takes milliseconds; of this very module)
            [sys.executable, "-m", __name__, command, spec.model_dump_json(exclude_defaults=True)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        try:
            while process.poll() is None:  # noqa: ASYNC110  # (a thread that waits couldn't be cancelled)
                await asyncio.sleep(_POLL_S)
        finally:
            process.kill()
            process.communicate()
        output.seek(0)
        answer = output.read()
    if not answer:
        raise CheckpointError(f"{spec.source}: the process that asked the hub ended with status {process.returncode}")
    said = json.loads(answer)
    if "problem" in said:
        raise CheckpointError(said["problem"])
    return said["answer"]


def _end_with_parent() -> None:
    sys.stdin.read()  # until nobody could write there any more
    os._exit(1)


def _look_up(spec: CheckpointSpec) -> list[dict[str, Any]]:
    return [asdict(file) for file in hub_checkpoints.look_up(spec)]


def _download(spec: CheckpointSpec) -> str:
    return str(hub_checkpoints.fetch(spec))


_COMMANDS: Mapping[str, Callable[[CheckpointSpec], Any]] = {"look-up": _look_up, "download": _download}


def _main(command: str, spec: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = {"answer": _COMMANDS[command](CheckpointSpec.model_validate_json(spec))}
    except Exception as error:  # whatever the hub's client may raise, whoever waits says it
        answer = {"problem": str(error) or type(error).__name__}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # (threads of the hub's client may hang)


if __name__ == "__main__":
    _main(*sys.argv[1:])
