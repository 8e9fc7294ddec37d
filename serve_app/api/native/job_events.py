"""A job's life as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    event: queued      {job_id, position, eta_seconds}
    event: progress    {job_id, status, step, steps, fraction, images_done, eta_seconds, preview?, preview_image?}
    event: complete | failed | cancelled | blocked      the job, as GET /result/{job_id} shows it

The first event says where the job stands, so a client may come late; after the last one the stream ends. preview is
a data URL, an estimate at an eighth of the size; preview_image is its image's index.
"""

import base64
from collections.abc import AsyncGenerator
from typing import Any

from deployments.engine.errors import DarkroomError
from serve_app.api.errors import error_body
from serve_app.api.native.job_view import Paths, accepted, job_view, progress_view
from serve_app.api.service import ELSEWHERE_POLL_S, Service
from serve_app.api.sse import KEEP_ALIVE, event
from serve_app.images.encode import encode_preview
from serve_app.jobs.events import News
from serve_app.jobs.job import Job

# every event travels on through Serve's proxy by itself: ten a second are smooth enough, whatever number of images
_PAUSE_S = 0.1


async def job_events(service: Service, job: Job, paths: Paths) -> AsyncGenerator[bytes, None]:
    """The events of a job from now on."""
    runner, hub = service.runner, service.hub
    job_id = job.id
    try:
        with hub.watch(job_id) as watch:
            job = await service.store.get(job_id)  # once more: it may have ended before the watch began
            if not job.state.terminal:
                known = accepted(job, runner, hub.latest(job_id), paths)
                data = {"job_id": job_id, "position": known.position, "eta_seconds": known.eta_seconds}
                yield event("queued", data)
            pause_s = 0.0
            while not job.state.terminal:
                silence_s = service.settings.limits.event_heartbeat_s if runner.runs(job_id) else ELSEWHERE_POLL_S
                news = await watch.next(silence_s, pause_s)
                pause_s = _PAUSE_S
                if news is None or (news.ended is None and not runner.runs(job_id)):
                    before = (job.step, job.state)
                    job = await service.store.get(job_id)
                    moved = (job.step, job.state) != before and not job.state.terminal
                    yield _progress(service, job, None) if moved else KEEP_ALIVE
                elif news.ended is not None:
                    job = news.ended
                else:
                    for moved_event in _moved(service, job, news):
                        yield moved_event
            view = job_view(job, runner, None, paths)
            yield event(job.state.value, view.model_dump(mode="json"))
    except DarkroomError as error:  # the answer has begun: all that is left is to say it here
        yield event("error", error_body(error))


def _moved(service: Service, job: Job, news: News) -> list[bytes]:
    """One event for the progress, each preview in one of its own."""
    if not news.previews:
        return [_progress(service, job, news)]
    return [
        _progress(
            service,
            job,
            news,
            preview="data:image/jpeg;base64," + base64.b64encode(encode_preview(pixels)).decode(),
            preview_image=image,
        )
        for image, pixels in sorted(news.previews.items())
    ]


def _progress(service: Service, job: Job, news: News | None, **preview: Any) -> bytes:
    live = news.progress if news is not None else None
    view = progress_view(job, service.runner, live)
    status = "running" if view.step else "queued"
    return event("progress", {"job_id": job.id, "status": status, **view.model_dump(), **preview})
