"""The one table from exceptions to HTTP status: of each branch of the tree, and of what differs from its branch."""

from collections.abc import Iterator, Mapping
from typing import Final

from deployments.engine import errors as engine
from deployments.engine.errors import DarkroomError
from serve_app import errors as front

BRANCHES: Final[Mapping[type[DarkroomError], int]] = {
    DarkroomError: 500,
    engine.InvalidRequest: 422,
    engine.CheckpointError: 500,
    engine.DeviceUnavailable: 503,
    engine.OutOfDeviceMemory: 503,
    engine.NumericalFailure: 500,
    engine.DeadlineExceeded: 504,
    engine.Cancelled: 409,
    engine.EngineStopped: 503,
    front.NotFound: 404,
    front.UnreadableRequest: 400,
    front.BodyTooLarge: 413,
    front.BodyTooSlow: 408,
    front.HeadersTooLarge: 431,
    front.UnsupportedMediaType: 415,
    front.MethodNotAllowed: 405,
    front.Unauthenticated: 401,
    front.Forbidden: 403,
    front.TooManyRequests: 429,
    front.QueueFull: 503,
    front.TooManyStreams: 503,
    front.StageUnavailable: 503,
    front.SignatureFailed: 503,
    front.ImagesWithheld: 422,
    front.StaleLease: 409,
    front.StoreUnavailable: 503,
}


def status_of(error: DarkroomError) -> int:
    """The HTTP status that an error is answered with: its class's, or the nearest base's that has one."""
    return _status_of(type(error))


def _status_of(cls: type[DarkroomError]) -> int:
    return next(BRANCHES[base] for base in cls.__mro__ if base in BRANCHES)


def _tree(cls: type[DarkroomError]) -> Iterator[type[DarkroomError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)


STATUS: Final[Mapping[type[DarkroomError], int]] = {cls: _status_of(cls) for cls in _tree(DarkroomError)}
"""Of every class of the tree."""
