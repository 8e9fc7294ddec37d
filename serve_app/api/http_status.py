"""The one table from exceptions to HTTP status."""

from collections.abc import Mapping
from typing import Final

from deployments.engine.errors import (
    Cancelled,
    CheckpointError,
    ControlnetRefused,
    DarkroomError,
    DeadlineExceeded,
    DeviceUnavailable,
    DoesNotFit,
    EngineStopped,
    InvalidRequest,
    LoraRefused,
    NumericalFailure,
    OutOfDeviceMemory,
    StateRefused,
    UnknownCheckpoint,
    UnknownSampler,
    UpscalerRefused,
)
from serve_app.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Forbidden,
    HeadersTooLarge,
    IdempotencyMismatch,
    ImagesWithheld,
    MalformedId,
    MethodNotAllowed,
    NotFound,
    PromptRefused,
    QueueFull,
    QuotaExceeded,
    StageUnavailable,
    StaleLease,
    StartsTooLate,
    StoreUnavailable,
    TenantQueueFull,
    TooManyRequests,
    TooManyStreams,
    Unauthenticated,
    UnknownImage,
    UnknownJob,
    UnknownRoute,
    UnreadableRequest,
    UnsupportedMediaType,
)

_CLASSES: Final[Mapping[int, tuple[type[DarkroomError], ...]]] = {
    400: (UnreadableRequest, MalformedId),
    401: (Unauthenticated,),
    403: (Forbidden,),
    404: (NotFound, UnknownJob, UnknownImage, UnknownRoute),
    405: (MethodNotAllowed,),
    408: (BodyTooSlow,),
    409: (Cancelled, StaleLease),
    413: (BodyTooLarge,),
    415: (UnsupportedMediaType,),
    422: (
        InvalidRequest,
        UnknownCheckpoint,
        UnknownSampler,
        LoraRefused,
        ControlnetRefused,
        UpscalerRefused,
        StateRefused,
        PromptRefused,
        IdempotencyMismatch,
        DoesNotFit,
        ImagesWithheld,
    ),
    429: (TooManyRequests, TenantQueueFull, QuotaExceeded),
    431: (HeadersTooLarge,),
    500: (DarkroomError, CheckpointError, NumericalFailure),
    503: (
        OutOfDeviceMemory,
        DeviceUnavailable,
        EngineStopped,
        StageUnavailable,
        QueueFull,
        StartsTooLate,
        TooManyStreams,
        StoreUnavailable,
    ),
    504: (DeadlineExceeded,),
}

STATUS: Final[Mapping[type[DarkroomError], int]] = {
    cls: status for status, classes in _CLASSES.items() for cls in classes
}


def status_of(error: DarkroomError) -> int:
    """The HTTP status that an error is answered with: its class's, or the nearest base's that has one."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
