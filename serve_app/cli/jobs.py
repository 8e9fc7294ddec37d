"""`darkroom jobs` and `darkroom cancel`: the jobs of a running service."""

import asyncio
from typing import Annotated, Any
from urllib.parse import quote

import typer

from serve_app.cli.options import DEFAULT_URL, AsJson, Key, Url
from serve_app.cli.output import reporting, write_json, write_line, write_table
from serve_app.jobs.states import JobState

_PAGE = 100  # most jobs in one answer of the service


def jobs(
    url: Url = DEFAULT_URL,
    key: Key = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of jobs to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with reporting(as_json):
        listed = asyncio.run(_newest(url, key, limit))
        if as_json:
            write_json({"jobs": listed})
        else:
            write_table(("JOB", "STATUS", "CREATED", "STEPS", "MODEL", "SEED", "PROMPT"), [*map(_row, listed)])


def cancel(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="The job's id, as `darkroom jobs` shows it.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a job at its next step. A job that has ended stays as it is."""
    with reporting(as_json):
        job = asyncio.run(_cancelled(url, key, job_id))
        if as_json:
            write_json(job)
        else:
            ended = JobState(job["status"]).terminal
            write_line(f"{job['job_id']}  {job['status']}" + ("" if ended else ", ends at its next step"))


async def _newest(url: str, key: str | None, limit: int) -> list[dict[str, Any]]:
    from serve_app.cli.client import Service

    newest: list[dict[str, Any]] = []
    page: dict[str, str] = {}
    async with Service(url, key) as service:
        while len(newest) < limit:
            answer = await service.get("/jobs", limit=min(limit - len(newest), _PAGE), **page)
            newest += answer["jobs"]
            if answer["next_cursor"] is None:
                break
            page = {"cursor": answer["next_cursor"]}
    return newest


async def _cancelled(url: str, key: str | None, job_id: str) -> dict[str, Any]:
    from serve_app.cli.client import Service

    async with Service(url, key) as service:
        return await service.delete(f"/jobs/{quote(job_id, safe='')}")


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    progress, request = job["progress"], job["request"]
    created = job["created_at"][:19].replace("T", " ")
    steps = f"{progress['step']}/{progress['steps']}"
    if "operation" in request:
        sizes = f"{request['source_width']}x{request['source_height']} to {request['width']}x{request['height']}"
        return job["job_id"], job["status"], created, steps, request["upscaler"], "-", sizes
    return job["job_id"], job["status"], created, steps, request["model"], str(request["seed"]), request["prompt"]
