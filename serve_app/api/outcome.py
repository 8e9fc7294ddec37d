"""What an ended job is to a client that waited for it: images, or an error. Knows no dialect."""

from dataclasses import dataclass
from typing import Any

from deployments.engine.errors import Cancelled, DarkroomError
from serve_app.api.native.job_view import BLOCKED_MESSAGE
from serve_app.api.service import Service
from serve_app.errors import STATUS, ImagesWithheld
from serve_app.image_store.store import ImageName
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.schemas.manifest import Manifest

_BY_CODE = {cls.code: cls for cls in STATUS}


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image that may be seen: its file's name, and what is known of it. size: "WIDTHxHEIGHT" in pixels."""

    name: ImageName
    size: str
    seed: int
    manifest: Manifest


def error_of(job: Job) -> DarkroomError | None:
    """Why there is no image; None where there is one."""
    match job.state:
        case JobState.COMPLETE:
            return None
        case JobState.BLOCKED:
            return ImagesWithheld(BLOCKED_MESSAGE)
        case JobState.CANCELLED:
            return Cancelled("the job was cancelled")
        case _:
            return _BY_CODE.get(job.error_code or "", DarkroomError)(job.error_message or "the job failed")


def shown_images(job: Job) -> list[ShownImage]:
    """The images of a job that may be seen, in the order of their seeds; withheld ones are left out."""
    records: list[dict[str, Any]] = (job.result or {}).get("images", [])
    return [
        ShownImage(
            ImageName.parse(record["name"]),
            f"{record['width']}x{record['height']}",
            record["seed"],
            Manifest.model_validate(record["manifest"], extra="ignore"),  # an older version may have written it
        )
        for record in records
        if record["name"] is not None
    ]


def shown_names(job: Job) -> list[ImageName]:
    """The names of those files alone, of any kind of job."""
    records: list[dict[str, Any]] = (job.result or {}).get("images", [])
    return [ImageName.parse(record["name"]) for record in records if record["name"] is not None]


async def files_of(service: Service, images: list[ShownImage]) -> list[bytes]:
    """The images' files. Raises UnknownImage, StoreUnavailable."""
    return [await service.images.read(image.name) for image in images]
