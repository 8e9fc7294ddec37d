"""What a webhook tells: the job at its end, as GET /result shows it, in the form of Standard Webhooks."""

from pydantic import BaseModel

from serve_app.api.links import Paths
from serve_app.api.native.job_view import JobView, job_view
from serve_app.jobs.job import Job
from serve_app.jobs.runner import JobRunner


class WebhookBody(BaseModel):
    """type: "job." and the job's status. timestamp: of its end."""

    type: str
    timestamp: str
    data: JobView


def webhook_body(job: Job, runner: JobRunner, root: str) -> bytes:
    """As JSON. Images' addresses aren't signed: where there are keys, they want one."""
    view = job_view(job, runner, None, Paths(root, None, 0))
    body = WebhookBody(type=f"job.{view.status}", timestamp=view.finished_at or view.created_at, data=view)
    return body.model_dump_json().encode()
