"""The front's own branches of the exception tree in deployments/engine/errors.py.

    DarkroomError
    ├── InvalidRequest
    │   └── PromptRefused         a pattern of the settings was found in the prompt
    ├── NotFound                  no such thing, or not this tenant's: the two are told apart nowhere
    │   ├── UnknownJob
    │   └── UnknownImage
    ├── QueueFull                 as many jobs are unfinished as the settings allow
    ├── StaleLease                the job has gone on to another owner, or has ended
    └── StoreUnavailable          the database or the image store can't be reached, or is full

Messages are fixed texts: what a database or a disk said stays in the `__cause__`, for the log.
"""

from deployments.engine.errors import DarkroomError, InvalidRequest


class PromptRefused(InvalidRequest):
    """A pattern of the settings was found in the prompt; which one isn't said."""

    code = "prompt_refused"


class NotFound(DarkroomError):
    """No such thing, or not this tenant's."""

    code = "not_found"


class UnknownJob(NotFound):
    """No job of that id for this tenant."""

    code = "unknown_job"


class UnknownImage(NotFound):
    """No image of that name."""

    code = "unknown_image"


class QueueFull(DarkroomError):
    """As many jobs are unfinished as the settings allow; worth another try later."""

    code = "queue_full"


class StaleLease(DarkroomError):
    """A write with an old fence: the job has gone on to another owner, or has ended. Drop it."""

    code = "stale_lease"


class StoreUnavailable(DarkroomError):
    """The job database or the image store can't be reached, or is full. Nothing was accepted or changed."""

    code = "store_unavailable"
