"""How far a caller's requests are, in AUTOMATIC1111's words. Previews are JPEG, an eighth of the image's size."""

import base64
from typing import Any

from serve_app.api.a1111.sessions import CallerSession
from serve_app.api.service import Service
from serve_app.images.encode import encode_preview
from serve_app.jobs.events import News
from serve_app.jobs.job import Job

# of a request that has begun, also before its first step: 0 is how clients know that nothing is being drawn
_LEAST_PROGRESS = 0.01


async def overall(service: Service, session: CallerSession, *, with_image: bool) -> dict[str, Any]:
    """The answer of GET /sdapi/v1/progress: the oldest unfinished request's progress, the number of all."""
    job = next(iter(session.jobs.values()), None)
    news = None if job is None else await _latest(service, job)
    fraction, step, steps = (0.0, 0, 0) if job is None else _steps(job, news)
    image = _preview(news) if with_image else None
    return {
        "progress": fraction,
        "eta_relative": 0.0 if job is None else _eta_s(service, job),
        "state": {
            "skipped": session.skipped,
            "interrupted": session.interrupted,
            "stopping_generation": session.interrupted and bool(session.jobs),
            "job": "" if job is None else job.id,
            "job_count": len(session.jobs),
            "job_timestamp": "0" if job is None else timestamp(job),
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": None if image is None else base64.b64encode(image).decode(),
        "textinfo": None,
    }


async def task_state(service: Service, session: CallerSession, task_id: str, seen: int | None) -> dict[str, Any]:
    """The answer of POST /internal/progress; `seen`: number of the client's last preview, None if it wants none."""
    job = session.job_of(task_id)
    news = None if job is None else await _latest(service, job)
    active = news is not None and news.progress is not None
    fraction, step, _ = (None, -1, 0) if job is None or not active else _steps(job, news)
    image = _preview(news) if seen is not None and step != seen else None
    return {
        "active": active,
        "queued": job is not None and not active,
        "completed": task_id in session.ended,
        "progress": fraction,
        "eta": None if job is None else _eta_s(service, job),
        "live_preview": None if image is None else f"data:image/jpeg;base64,{base64.b64encode(image).decode()}",
        "id_live_preview": step,
        "textinfo": None if active or job is None else "In queue…",
    }


def timestamp(job: Job) -> str:
    """A1111's form of a job's beginning: digits alone, UTC."""
    return job.created_at.strftime("%Y%m%d%H%M%S")


async def _latest(service: Service, job: Job) -> News | None:
    """What is known of a job in this process by now."""
    with service.hub.watch(job.id) as watch:
        return await watch.next(0)


def _steps(job: Job, news: News | None) -> tuple[float, int, int]:
    """The fraction done; steps of the sampler done and planned, as if its images were drawn as one.

    A picture that is made larger takes none, but is a step.
    """
    planned: int = job.request.get("steps", 1)
    if news is None or news.progress is None or not news.progress.steps:
        return _LEAST_PROGRESS, 0, planned
    fraction = news.progress.step / news.progress.steps
    return max(_LEAST_PROGRESS, round(fraction, 4)), round(fraction * planned), planned


def _eta_s(service: Service, job: Job) -> float:
    return round(service.runner.eta_s(job.id) or 0.0, 2)


def _preview(news: News | None) -> bytes | None:
    """The first image's latest preview, or that of whichever has one."""
    if news is None or not news.previews:
        return None
    return encode_preview(news.previews[min(news.previews)])
