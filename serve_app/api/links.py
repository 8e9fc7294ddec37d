"""Where a caller finds jobs and images on this service."""

import time
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from serve_app.auth.caller import caller_of
from serve_app.auth.keys import ApiKey
from serve_app.auth.signed_urls import link_query


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths as one caller is told them.

    root: the path that the application is mounted at, without a slash at its end.
    key: the caller's, which signs its images' addresses; None leaves them as they are.
    link_s: seconds that a signed address works at least.
    """

    root: str
    key: ApiKey | None
    link_s: int

    @classmethod
    def of(cls, request: HTTPConnection, link_s: int) -> "Paths":
        """For the caller of a request."""
        root: str = request.scope.get("root_path", "")
        return cls(root.rstrip("/"), caller_of(request).key, link_s)

    def image(self, name: str) -> str:
        """An image's; with keys it works for a while without one."""
        path = f"{self.root}/images/{name}"
        return path if self.key is None else f"{path}?{link_query(name, self.key, time.time(), self.link_s)}"

    def result(self, job_id: str) -> str:
        """A job's state and result."""
        return f"{self.root}/result/{job_id}"

    def events(self, job_id: str) -> str:
        """A job's event stream."""
        return f"{self.root}/jobs/{job_id}/events"

    def job(self, job_id: str) -> str:
        """A job, to be cancelled."""
        return f"{self.root}/jobs/{job_id}"
