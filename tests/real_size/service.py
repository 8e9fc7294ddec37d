"""The service by `darkroom serve` with checkpoints of real sizes: its pictures, its memory, what is measured of it."""

import io
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import yaml
from PIL import Image

from benchmarks.servers import DARKROOM_ENVIRONMENT, Server, free_port, server
from tests.serve_app.cli.command_line import COMMAND

# pictures of 256 x 256 in few steps, and memory planned for one at a time
REQUESTS = {
    "defaults": {"steps": 4, "guidance_scale": 5.0, "width": 256, "height": 256, "sampler": "euler"},
    "limits": {
        "steps": {"min": 1, "max": 50},
        "width": {"min": 64, "max": 512},
        "height": {"min": 64, "max": 512},
        "max_pixels": 65_536,
    },
}
_TITLE = re.compile(r"ray::ServeReplica:darkroom:(\w+)")
_READY_S = 900.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class RealService:
    """A service that runs.

    Attributes:
        ready_s: seconds from its start until it was ready.
        peaks: of its replicas' memory.
        figures: what was measured, by its name.
    """

    http: httpx.Client
    ready_s: float
    peaks: "Peaks"
    figures: dict[str, Any] = field(default_factory=dict)

    def draw(self, model: str, **fields: Any) -> "Drawn":
        """An image that is done, and what it took."""
        body = {"prompt": "a lighthouse at dusk, oil on canvas", "model": model, "seed": 4, **fields}
        begun, before = time.monotonic(), self.peaks.processor_s()
        job = self.http.post("/generate", json=body, headers={"prefer": "wait=300"}).raise_for_status().json()
        while job["status"] in ("queued", "running"):  # a machine that does other things is slow
            job = self.http.get(f"/result/{job['job_id']}").json()
            time.sleep(0.2)
        took = Took(round(time.monotonic() - begun, 1), round(self.peaks.processor_s() - before, 1))
        assert job["status"] == "complete", job
        image = Image.open(io.BytesIO(self.http.get(job["images"][0]["url"]).content))
        image.load()
        assert image.size == (256, 256)
        assert np.asarray(image).std() > 1, "of one colour"
        return Drawn(image, took)

    def planned_mib(self, stage: str, model: str) -> float:
        """The most memory that a stage plans for a model: weights and activations."""
        memory = self.http.get("/ready").json()["stages"][stage]["replica"]["memory"]
        rows = [row for row in memory["rows"] if row["checkpoint"] == model]
        assert rows
        assert all(row["fits"] for row in rows), rows
        return float(max(row["on_device"] + row["activations"] for row in rows)) / _MIB

    def check_memory(self, stage: str, models: Sequence[str], small: tuple[str, str]) -> None:
        """Assert that a stage's peak is within a tenth of what it plans for the largest of its models and the LoRA.

        Args:
            stage: whose peak it is, over its life, swaps included.
            models: that it has loaded.
            small: a stage and its only model, which show what a process takes without checkpoints of a size.
        """
        base = self.peak_mib(small[0]) - self.planned_mib(*small)
        # the plan keeps LoRAs aside, as loras.resident_mib
        planned = max(self.planned_mib(stage, model) for model in models) + self.figures["lora_mib"]
        peak = self.peak_mib(stage) - base
        self.figures.update(
            process_mib=base,
            planned_mib=planned,
            peak_mib=peak,
            resident_peak_mib=self.resident_peak_mib(stage),
            text_encoder_mib=self.peak_mib("TextEncoder") - base,
        )
        assert 0.9 * planned < peak < 1.1 * planned, self.figures

    def peak_mib(self, stage: str) -> float:
        """The peak so far of a stage's memory that the kernel can't take back.

        Not `VmHWM`: that counts a checkpoint's file, too, which is mapped while it is read.
        """
        return self.peaks.mib[stage]

    def resident_peak_mib(self, stage: str) -> float:
        """The peak of all that was resident of a stage's replica, over its life: the kernel's `VmHWM`."""
        return _status_mib(self.peaks.pids[stage], "VmHWM")


class Took(NamedTuple):
    """Seconds, and seconds of processors, which tell more on a machine that does other things."""

    wall_s: float
    processor_s: float


class Drawn(NamedTuple):
    """An image, and what it took, its checkpoint's load included if it had to be loaded."""

    image: Image.Image
    took: Took


class Peaks(Thread):
    """Watches the memory of a service's replicas that isn't mapped from a file, from their start on.

    Attributes:
        mib: the peaks, by stage.
        pids: of the replicas.
    """

    def __init__(self, process: Server) -> None:
        super().__init__()
        self.mib: dict[str, float] = {}
        self.pids: dict[str, int] = {}
        self._process = process
        self._over = Event()

    def run(self) -> None:
        looks = 0
        while not self._over.wait(0.05):
            if looks % 100 == 0:
                self.pids |= _replicas(self._process)
            looks += 1
            for stage, pid in self.pids.items():
                with suppress(FileNotFoundError, ProcessLookupError):
                    self.mib[stage] = max(self.mib.get(stage, 0.0), _status_mib(pid, "RssAnon"))

    def processor_s(self) -> float:
        """Seconds of processors that the replicas have taken so far."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids.values()]
        return sum(one.user + one.system for one in times)

    def stop(self) -> None:
        """End."""
        self._over.set()
        self.join()


def _replicas(process: Server) -> dict[str, int]:
    """The processes of stages, by name."""
    found = {}
    for one in process.family():
        with suppress(psutil.NoSuchProcess):
            match = _TITLE.match(" ".join(one.cmdline()))
            if match is not None:
                found[match[1]] = one.pid
    return found


def _status_mib(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    lines = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0  # a process that has just ended has none


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two images, in levels of 255."""
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


@contextmanager
def running(
    models: Mapping[str, Any], stages: Mapping[str, Any], folder: Path, **sections: Any
) -> Iterator[RealService]:
    """A service with these models and stages, its data in `folder`; its figures end up in figures.json there."""
    port = free_port()
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": None},
        "applications": [
            {
                "name": "darkroom",
                "route_prefix": "/",
                "import_path": "serve_app.app:build",
                "args": {
                    "device": "cpu",
                    "default_model": next(iter(models)),
                    "models": dict(models),
                    "stages": dict(stages),
                    "safety": {"mode": "off"},
                    "jobs": {"database_url": f"sqlite+aiosqlite:///{folder}/jobs.db"},
                    "images": {"url": str(folder / "images")},
                    "access": {"requests": None, "generations": None},
                    **sections,
                },
            }
        ],
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    log = folder / "service.log"
    with server([*COMMAND, "serve", str(config)], log, folder, DARKROOM_ENVIRONMENT) as process:
        begun = time.monotonic()
        peaks = Peaks(process)
        peaks.start()
        with ExitStack() as ends, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
            ends.callback(peaks.stop)
            while not _is_ready(http):
                assert process.alive(), log.read_text(errors="replace")[-5000:]
                assert time.monotonic() - begun < _READY_S, log.read_text(errors="replace")[-5000:]
                time.sleep(0.25)
            one = RealService(http, time.monotonic() - begun, peaks)
            try:
                yield one
            finally:
                (folder / "figures.json").write_text(json.dumps(one.figures, indent=1), encoding="utf-8")


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx.TransportError:
        return False
