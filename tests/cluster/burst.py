"""A burst of jobs on a simulated cluster: when each new replica of SD15 came, and how the work spread over them.

    python -m tests.cluster.burst --jobs 64 --replicas 4 --json burst.json

The shipped cluster configuration with demo models (overlay.laptop.yaml); SD15 scales from 1 to --replicas, on as many
nodes as that takes. All replicas share this machine's cores: the figures say how work spreads, not how fast a cluster
is.
"""

import asyncio
import tempfile
import time
from collections import Counter
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from tests.cluster.fake_cluster import FakeCluster, fake_cluster, until
from tests.cluster.load import Drawn, draw, request

CONSOLE = Console()
START_S = 600.0
# of the reproducible requests; one of so many jobs is one
# few are: each fills a bucket alone, so that images would no longer measure how the work spreads
_KINDS, _COMPARED = 4, 16
_STAGE = "SD15"


class ReplicaFigures(BaseModel):
    """What one replica of SD15 did; seconds from the burst's first request.

    Attributes:
        ready_s: when it could draw; negative for one that was there before.
        first_image_s: when its first image of the burst was done; None without one.
        images: of the burst; `late_images` of those in the second half of its time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    replica: str
    node: str
    ready_s: float
    first_image_s: float | None
    images: int
    late_images: int


class BurstFigures(BaseModel):
    """A burst.

    Attributes:
        lone_s: one image's time on the idle service, from its request to its end.
        seconds: of the whole burst.
        lost, doubled: jobs without an image; images beyond one for each job.
        different: reproducible images that aren't those of the idle service.
        interactive_wait_s: of one interactive job sent when all others were accepted, before its first step.
        interactive_total_s: until its end.
        nodes: most at once, by their type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: int
    lone_s: float
    seconds: float
    lost: int
    doubled: int
    different: int
    interactive_wait_s: float
    interactive_total_s: float
    nodes: dict[str, int]
    replicas: list[ReplicaFigures]


async def measure_burst(cluster: FakeCluster, jobs: int, replicas: int, steps: int) -> BurstFigures:
    """Deploy, draw alone, then send `jobs` jobs at once and one interactive job after them."""
    await cluster.deploy(
        {
            "stages": {
                "sd15": {"autoscaling": {"max_replicas": replicas}},
                # not part of it, and each would take a share of the cores
                "sdxl_base": {"autoscaling": {"min_replicas": 0}},
                "sdxl_refiner": {"autoscaling": {"min_replicas": 0}},
            },
            "access": {"requests": None, "generations": None},
        }
    )
    async with cluster.service() as client:

        async def ready() -> bool:
            return (await client.get("/ready")).status_code == 200

        await until(ready, START_S, "the service is ready")
        CONSOLE.print("ready; drawing alone")
        size: dict[str, Any] = {"steps": steps, "width": 256, "height": 256}
        alone = [await draw(client, request(number, **size)) for number in range(_KINDS)]
        lone_s = median([(await draw(client, request(9, **size, reproducible=False))).total_s for _ in range(3)])

        CONSOLE.print(f"one image takes {lone_s:.1f} s; sending {jobs} jobs")
        since, since_ns = time.monotonic(), time.time_ns()
        burst = asyncio.gather(*(draw(client, _body(number, size)) for number in range(jobs)), return_exceptions=True)

        async def accepted() -> bool:
            depth = (await client.get("/ready")).json()["jobs"]
            return bool(depth["queued"] + depth["running"] >= jobs or burst.done())

        most: Counter[str] = Counter()
        watching = asyncio.create_task(_watch_nodes(cluster, most))
        await until(accepted, 60, "all jobs are accepted")
        interactive = await draw(client, request(10, **size, reproducible=False, priority="interactive"))
        answers = await burst
        seconds = time.monotonic() - since
        watching.cancel()
        await asyncio.wait({watching})
    found = _replica_figures(cluster, since_ns, seconds)
    return BurstFigures(
        jobs=jobs,
        lone_s=lone_s,
        seconds=seconds,
        lost=sum(isinstance(answer, BaseException) for answer in answers),
        doubled=sum(figures.images for figures in found) - jobs - 1,
        different=sum(
            isinstance(answer, Drawn) and answer.pixels != alone[_kind(number)].pixels
            for number, answer in enumerate(answers)
            if number % _COMPARED == 0
        ),
        interactive_wait_s=interactive.queued_s,
        interactive_total_s=interactive.total_s,
        nodes=dict(most),
        replicas=found,
    )


def _body(number: int, size: dict[str, Any]) -> dict[str, Any]:
    """Some can be compared to the bit; the others may share their steps with any."""
    if number % _COMPARED == 0:
        return request(_kind(number), **size)
    return request(_KINDS + number, **size, reproducible=False)


def _kind(number: int) -> int:
    return number // _COMPARED % _KINDS


async def _watch_nodes(cluster: FakeCluster, most: Counter[str]) -> None:
    while True:
        for node_type, count in Counter((await cluster.nodes()).values()).items():
            most[node_type] = max(most[node_type], count)
        await asyncio.sleep(1)


def _replica_figures(cluster: FakeCluster, since_ns: int, seconds: float) -> list[ReplicaFigures]:
    """From the replicas' own logs, in the order in which they became ready."""
    figures = []
    for replica, records in groupby(cluster.log_records(_STAGE), key=itemgetter("replica")):
        node, ready_s, images = "", None, []
        for record in records:
            at = (record["timestamp_ns"] - since_ns) / 1e9
            if record["message"] == "Finished initializing replica.":
                node, ready_s = record["node_id"], at
            elif record["message"].startswith("CALL denoise OK") and at >= 0:
                images.append(at)
        if ready_s is not None:
            figures.append(
                ReplicaFigures(
                    replica=replica,
                    node=node[-4:],
                    ready_s=ready_s,
                    first_image_s=min(images, default=None),
                    images=len(images),
                    late_images=sum(at > seconds / 2 for at in images),
                )
            )
    return sorted(figures, key=lambda replica: replica.ready_s)


def show(figures: BurstFigures) -> None:
    """On the terminal."""
    table = Table("replica", "node", "ready", "first image", "images", "in the second half")
    for replica in figures.replicas:
        first = "-" if replica.first_image_s is None else f"{replica.first_image_s:.1f} s"
        counts = str(replica.images), str(replica.late_images)
        table.add_row(replica.replica, replica.node, f"{replica.ready_s:.1f} s", first, *counts)
    CONSOLE.print(table)
    CONSOLE.print(
        f"{figures.jobs} jobs in {figures.seconds:.0f} s on {figures.nodes}; one alone takes {figures.lone_s:.1f} s.\n"
        f"Lost {figures.lost}, doubled {figures.doubled}, different {figures.different}.\n"
        f"An interactive job in the full backlog waited {figures.interactive_wait_s:.1f} s and took "
        f"{figures.interactive_total_s:.1f} s."
    )


def main(
    jobs: Annotated[int, typer.Option(min=4)] = 64,
    replicas: Annotated[int, typer.Option(min=1, max=8, help="most replicas of SD15")] = 4,
    steps: Annotated[int, typer.Option(min=10, max=50, help="of each image, at 256 x 256")] = 20,
    json_path: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Send a burst of jobs to a simulated cluster and show how it spreads."""
    with (
        tempfile.TemporaryDirectory(prefix="dkb-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        fake_cluster(Path(folder)) as cluster,
    ):
        figures = asyncio.run(measure_burst(cluster, jobs, replicas, steps))
    if json_path is not None:
        json_path.write_text(figures.model_dump_json(indent=1), encoding="utf-8")
    show(figures)


if __name__ == "__main__":
    typer.run(main)
