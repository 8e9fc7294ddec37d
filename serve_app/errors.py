"""The front's own branches of the exception tree in deployments/engine/errors.py.

    DarkroomError
    ├── InvalidRequest
    │   ├── PromptRefused         a pattern of the settings was found in the prompt
    │   ├── BatchRefused          the input of a batch can't be read as one
    │   └── IdempotencyMismatch   the Idempotency-Key was used for another request
    ├── NotFound                  no such thing, or not this tenant's: the two are told apart nowhere
    │   ├── UnknownJob
    │   ├── UnknownImage
    │   ├── UnknownFile
    │   ├── UnknownBatch
    │   ├── UnknownEntry          no such model, alias or file of weights to change
    │   └── UnknownRoute
    ├── UnreadableRequest         the request can't be read, whatever it asks for
    │   ├── MalformedId           an id that no job can have
    │   ├── BodyTooLarge
    │   ├── BodyTooSlow
    │   ├── HeadersTooLarge
    │   ├── UnsupportedMediaType
    │   └── MethodNotAllowed
    ├── Unauthenticated           no key, or none of ours
    ├── Forbidden                 the key may not do this; or there are no keys, and the request comes from outside
    ├── TooManyRequests           more than the settings allow one key
    │   ├── TenantQueueFull       as much work of one tenant is unfinished as the settings allow
    │   ├── TooManyFiles          the tenant has uploaded as many files, or bytes, as the settings allow
    │   ├── TooManyBatches        as many batches of one tenant are unfinished as the settings allow
    │   └── QuotaExceeded         the key has spent the device seconds that the settings allow it
    ├── QueueFull                 as many jobs, or as much work, are unfinished as the settings allow
    │   └── StartsTooLate         it would only start when its time is over
    ├── TooManyStreams            as many event streams are open as the settings allow
    ├── StageUnavailable          a stage had no live replica for as long as the settings wait
    ├── SignatureFailed           an image couldn't be signed with its credentials
    ├── ImagesWithheld            the safety layers let no image of the job through
    ├── StaleLease                the job has gone on to another owner, or has ended
    └── StoreUnavailable          the database or the image store can't be reached, or is full

Messages are fixed texts: what a database or a disk said stays in the `__cause__`, for the log. Which class is answered
with which HTTP status stands in api/http_status.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.engine.errors import DarkroomError, InvalidRequest


class PromptRefused(InvalidRequest):
    """A pattern of the settings was found in the prompt; which one isn't said."""

    code = "prompt_refused"


class BatchRefused(InvalidRequest):
    """The input of a batch can't be read as one.

    Each of `problems` has code, message, and where it is known its line and param.
    """

    code = "batch_refused"

    def __init__(self, message: str, field: str | None = None, *, problems: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message, field)
        self.problems = problems

    @classmethod
    def of(cls, *problems: Mapping[str, Any]) -> "BatchRefused":
        """For these problems, of which there is one at least."""
        return cls(str(problems[0]["message"]), problems=problems)


class IdempotencyMismatch(InvalidRequest):
    """The Idempotency-Key was used for another request."""

    code = "idempotency_mismatch"


class NotFound(DarkroomError):
    """No such thing, or not this tenant's."""

    code = "not_found"


class UnknownJob(NotFound):
    """No job of that id for this tenant."""

    code = "unknown_job"


class UnknownImage(NotFound):
    """No image of that name."""

    code = "unknown_image"


class UnknownFile(NotFound):
    """No file of that id for this tenant."""

    code = "unknown_file"


class UnknownBatch(NotFound):
    """No batch of that id for this tenant."""

    code = "unknown_batch"


class UnknownEntry(NotFound):
    """No such model, alias or file of weights that could be changed."""

    code = "unknown_entry"


class UnknownRoute(NotFound):
    """No route of that path."""

    code = "unknown_route"


class UnreadableRequest(DarkroomError):
    """The request can't be read, whatever it asks for: no JSON, too deep, not what its headers say."""

    code = "unreadable_request"


class MalformedId(UnreadableRequest):
    """An id that no job can have."""

    code = "malformed_id"


class BodyTooLarge(UnreadableRequest):
    """The body is longer than the settings allow; it was not read to its end."""

    code = "body_too_large"


class BodyTooSlow(UnreadableRequest):
    """The body didn't arrive within the time that the settings allow."""

    code = "body_too_slow"


class HeadersTooLarge(UnreadableRequest):
    """More headers, or longer ones, than any client of ours has a use for."""

    code = "headers_too_large"


class UnsupportedMediaType(UnreadableRequest):
    """The body is of a type or an encoding that the route doesn't take."""

    code = "unsupported_media_type"


class MethodNotAllowed(UnreadableRequest):
    """The route knows other methods."""

    code = "method_not_allowed"


class Unauthenticated(DarkroomError):
    """The request brings no API key, or none that is good. Which of the two isn't said."""

    code = "unauthenticated"


class Forbidden(DarkroomError):
    """The caller is known, and may not do this."""

    code = "forbidden"


class TooManyRequests(DarkroomError):
    """The key has sent more requests than the settings allow; it may send another after `retry_after_s`."""

    code = "rate_limited"

    def __init__(self, message: str, field: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(message, field)
        self.retry_after_s = retry_after_s


class TenantQueueFull(TooManyRequests):
    """As much work of one tenant is unfinished as the settings allow."""

    code = "tenant_queue_full"


class TooManyFiles(TooManyRequests):
    """The tenant has uploaded as many files, or bytes, as the settings allow."""

    code = "too_many_files"


class TooManyBatches(TooManyRequests):
    """As many batches of one tenant are unfinished as the settings allow."""

    code = "too_many_batches"


class QuotaExceeded(TooManyRequests):
    """The key has spent the device seconds that the settings allow it."""

    code = "quota_exceeded"


class QueueFull(DarkroomError):
    """As many jobs, or as much work, are unfinished as the settings allow.

    There may be a place after `retry_after_s`; None if unknown.
    """

    code = "queue_full"

    def __init__(self, message: str, field: str | None = None, *, retry_after_s: int | None = None) -> None:
        super().__init__(message, field)
        self.retry_after_s = retry_after_s


class StartsTooLate(QueueFull):
    """With what is queued already it would only start when its time is over."""

    code = "starts_too_late"


class TooManyStreams(DarkroomError):
    """As many event streams are open as the settings allow; worth another try later."""

    code = "too_many_streams"


class StageUnavailable(DarkroomError):
    """A stage had no live replica for as long as the settings wait, or lost too many under one request."""

    code = "stage_unavailable"


class ImagesWithheld(DarkroomError):
    """The job ran to its end, and the safety layers let none of its images through."""

    code = "blocked"


class SignatureFailed(DarkroomError):
    """An image couldn't be signed with its Content Credentials, and the settings don't let it go unsigned."""

    code = "signature_failed"


class StaleLease(DarkroomError):
    """A write with an old fence: the job has gone on to another owner, or has ended. Drop it."""

    code = "stale_lease"


class StoreUnavailable(DarkroomError):
    """The job database or the image store can't be reached, or is full. Nothing was accepted or changed."""

    code = "store_unavailable"
