"""`darkroom jobs`, `wait`, `result` and `cancel`: the jobs of a running service."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

import typer

from serve_app.cli.generate import report
from serve_app.cli.image_files import STDOUT, ImageFiles
from serve_app.cli.options import DEFAULT_URL, AsJson, JobId, Key, Output, Overwrite, Url
from serve_app.cli.output import Failure, check_ended, reporting, write_json, write_line, write_table
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
            digits = _digits_needed([job["job_id"] for job in listed])
            rows = [_row(job, digits) for job in listed]
            write_table(("JOB", "STATUS", "CREATED", "MODEL", "SEED", "PROMPT"), rows)


def wait(
    job: JobId,
    for_s: Annotated[
        float | None, typer.Option("--for", min=0.1, help="Seconds after which to wait no longer; the job goes on.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a job's end. Ctrl-C ends the waiting; the job goes on."""
    with reporting(as_json):
        ended = asyncio.run(_awaited(url, key, job, for_s))
        check_ended(ended)
        _show(ended, as_json)


def result(
    job: JobId,
    output: Output = None,
    overwrite: Overwrite = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write the images of a job that has ended to files."""
    files = ImageFiles(output, overwrite)
    files.check(1, as_json)
    with reporting(as_json):
        report(asyncio.run(_fetched(url, key, job, files)), files, as_json)


def cancel(job: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Cancel a job at its next step. A job that has ended stays as it is."""
    with reporting(as_json):
        _show(asyncio.run(_cancelled(url, key, job)), as_json)


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


async def _awaited(url: str, key: str | None, job: str, for_s: float | None) -> dict[str, Any]:
    from serve_app.cli.client import Service, ended

    async with Service(url, key) as service:
        return await ended(service, await service.get(f"/result/{await service.job_id(job)}"), for_s)


async def _fetched(url: str, key: str | None, job: str, files: ImageFiles) -> dict[str, Any]:
    from serve_app.cli.client import Service, save_images, short

    async with Service(url, key) as service:
        known = await service.get(f"/result/{await service.job_id(job)}")
        name = short(known["job_id"])
        if not JobState(known["status"]).terminal:
            message = f"job {name} hasn't ended: `darkroom wait {name}` waits for it"
            raise Failure("not_ended", message, job_id=known["job_id"])
        shown = [image for image in known["images"] if image["url"] is not None]
        if files.output == STDOUT and len(shown) > 1:
            raise Failure("not_written", f"job {name} has {len(shown)} images, and - is one image on stdout")
        stored = {image["format"] for image in shown}
        if files.format is not None and stored and stored != {files.format}:
            raise Failure("not_written", f"{files.output}: the images of job {name} are {' and '.join(stored)}")
        await save_images(service, known, files)
    return known


async def _cancelled(url: str, key: str | None, job: str) -> dict[str, Any]:
    from serve_app.cli.client import Service

    async with Service(url, key) as service:
        return await service.delete(f"/jobs/{await service.job_id(job)}")


def _show(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(job)
    else:
        ended = JobState(job["status"]).terminal
        write_line(f"{job['job_id']}  {job['status']}" + ("" if ended else ", ends at its next step"))


def _digits_needed(job_ids: list[str]) -> int:
    """Digits from the ids' ends by which these jobs differ."""
    from serve_app.cli.client import SHORT_ID

    return next(digits for digits in range(SHORT_ID, 33) if len({one[-digits:] for one in job_ids}) == len(job_ids))


def _row(job: dict[str, Any], digits: int) -> tuple[str, ...]:
    progress, request = job["progress"], job["request"]
    running = job["status"] == JobState.RUNNING
    status = f"{job['status']} {progress['step']}/{progress['steps']}" if running else job["status"]
    created = f"{datetime.fromisoformat(job['created_at']).astimezone():%m-%d %H:%M}"
    if "operation" in request:
        sizes = f"{request['source_width']}x{request['source_height']} to {request['width']}x{request['height']}"
        about = request["upscaler"], "-", sizes
    else:
        about = request["model"], str(request["seed"]), request["prompt"]
    return job["job_id"][-digits:], status, created, *about
