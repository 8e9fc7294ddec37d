"""A job as clients see it: the native API's shapes, and the paths at which jobs and images are served."""

import time
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from serve_app.auth.caller import Caller
from serve_app.auth.key_file import ApiKey
from serve_app.auth.signed_urls import link_query
from serve_app.jobs.job import Job, JobProgress
from serve_app.jobs.runner import JobRunner
from serve_app.jobs.states import JobState

Status = Literal["queued", "running", "complete", "failed", "cancelled", "blocked"]

BLOCKED_MESSAGE = "every image of this job was withheld as unsafe"


@dataclass(frozen=True, slots=True)
class Paths:
    """Makes the paths in one caller's answers.

    Attributes:
        root: the path that the application is mounted at, without a slash at its end.
        key: of the caller, which signs its images' addresses; None to leave them unsigned.
        link_s: least seconds that a signed address works.
    """

    root: str
    key: ApiKey | None
    link_s: int

    @classmethod
    def of(cls, request: HTTPConnection, caller: Caller, link_s: int) -> "Paths":
        """For the caller of a request."""
        root: str = request.scope.get("root_path", "")
        return cls(root.rstrip("/"), caller.key, link_s)

    def image(self, name: str) -> str:
        """An image's; with keys it works for a while without one."""
        path = f"{self.root}/images/{name}"
        return path if self.key is None else f"{path}?{link_query(name, self.key, time.time(), self.link_s)}"

    def links(self, job_id: str) -> "Links":
        """Where a job is."""
        job = f"{self.root}/jobs/{job_id}"
        return Links(result=f"{self.root}/result/{job_id}", events=f"{job}/events", cancel=job)


class Links(BaseModel):
    """Where to go on from here; paths on this service."""

    result: str
    events: str
    cancel: str


class Accepted(BaseModel):
    """A job was accepted."""

    job_id: str
    status: Status
    position: int = Field(description="Place among the waiting jobs, 1 being next; 0 once it is being drawn.")
    eta_seconds: float | None = Field(description="Until its end; null before anything was measured.")
    links: Links


class Nsfw(BaseModel):
    """What the safety layers said of an image, and what was done."""

    flagged: bool
    score: float | None = Field(description="Of the unsafe label, 0..1; null where nothing was checked.")
    action: str = Field(description="none, blocked, blurred or flagged.")
    flagged_by: list[str]


class ImageView(BaseModel):
    """One image."""

    index: int
    url: str | None = Field(description="null where it was withheld.")
    blocked: bool
    seed: int | None = Field(description="null of a picture that was enlarged.")
    width: int
    height: int
    format: str
    nsfw: Nsfw
    reproducibility: str
    signed: bool = Field(default=False, description="Whether the file has Content Credentials.")


class ProgressView(BaseModel):
    """UNet evaluations done and planned, over all images and stages."""

    step: int
    steps: int
    fraction: float
    images_done: int
    eta_seconds: float | None


class ErrorView(BaseModel):
    """Why there is nothing to see."""

    code: str
    message: str


class JobView(BaseModel):
    """A job, its progress, and its images once they are there."""

    job_id: str
    status: Status
    created_at: str
    finished_at: str | None
    position: int
    progress: ProgressView
    images: list[ImageView]
    image_url: str | None = Field(description="The first image that may be seen.")
    error: ErrorView | None
    timings: dict[str, float | None]
    request: dict[str, Any] = Field(description="The request with nothing left open; its seed draws it again.")
    links: Links


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobView]
    next_cursor: str | None = Field(description="For the page after this one; null at the end.")


def accepted(job: Job, runner: JobRunner, live: JobProgress | None, paths: Paths) -> Accepted:
    """The answer to a request that was taken; `live` as in `job_view`."""
    eta = runner.eta_s(job.id)
    return Accepted(
        job_id=job.id,
        status=status_of_job(job, live),
        position=runner.position(job.id),
        eta_seconds=None if eta is None else round(eta, 2),
        links=paths.links(job.id),
    )


def job_view(job: Job, runner: JobRunner, live: JobProgress | None, paths: Paths) -> JobView:
    """The job as its client sees it; `live`: progress of a job in this process, newer than the store's."""
    result = job.result or {}
    images = [_image(record, paths) for record in result.get("images", ())]
    return JobView(
        job_id=job.id,
        status=status_of_job(job, live),
        created_at=job.created_at.isoformat(),
        finished_at=None if job.finished_at is None else job.finished_at.isoformat(),
        position=runner.position(job.id),
        progress=progress_view(job, runner, live),
        images=images,
        image_url=next((image.url for image in images if image.url is not None), None),
        error=_error(job),
        timings=result.get("timings", {}),
        request={field: value for field, value in job.request.items() if field != "ingredients"},  # which are ours
        links=paths.links(job.id),
    )


def progress_view(job: Job, runner: JobRunner, live: JobProgress | None) -> ProgressView:
    """How far the job is."""
    known = live or JobProgress(job.step, job.steps, job.images_done)
    if job.state in (JobState.COMPLETE, JobState.BLOCKED):
        images = len((job.result or {}).get("images", ()))
        known = JobProgress(known.steps, known.steps, images)
    fraction = known.step / known.steps if known.steps else 0.0
    if job.state in (JobState.COMPLETE, JobState.BLOCKED):
        fraction = 1.0
    eta = 0.0 if job.state.terminal else runner.eta_s(job.id)
    return ProgressView(
        step=known.step,
        steps=known.steps,
        fraction=round(fraction, 4),
        images_done=known.images_done,
        eta_seconds=None if eta is None else round(eta, 2),
    )


def status_of_job(job: Job, live: JobProgress | None) -> Status:
    """A job that an owner has taken up but no lane has stepped for still waits, as its client sees it."""
    if job.state is JobState.RUNNING and not (live.step if live else job.step):
        return "queued"
    status: Status = job.state.value
    return status


def _image(record: dict[str, Any], paths: Paths) -> ImageView:
    name = record["name"]
    return ImageView(
        url=None if name is None else paths.image(name),
        blocked=name is None,
        **{key: record[key] for key in ImageView.model_fields if key in record},
    )


def _error(job: Job) -> ErrorView | None:
    if job.state is JobState.BLOCKED:
        return ErrorView(code="blocked", message=BLOCKED_MESSAGE)
    if job.error_code is None:
        return None
    return ErrorView(code=job.error_code, message=job.error_message or "")
