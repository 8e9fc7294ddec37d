"""The exception tree of Darkroom, drawn once.

    DarkroomError
    ├── InvalidRequest            the request can't be done as it is
    │   ├── UnknownCheckpoint
    │   ├── UnknownSampler
    │   ├── LoraRefused           no such LoRA, or one that can't be used, at all or with this model
    │   ├── ControlnetRefused     the same of a ControlNet
    │   ├── IpAdapterRefused      the same of an IP-Adapter
    │   ├── VaeRefused            the same of a VAE
    │   ├── UpscalerRefused       the same of an upscaler
    │   ├── DetectorRefused       the same of a detector
    │   ├── StateRefused          a lane can't go on from its snapshot; it can begin anew
    │   └── DoesNotFit            an image or a checkpoint doesn't fit the memory
    ├── CheckpointError           a checkpoint is missing, partial, of the wrong kind, or unsafe to load
    │   └── CheckpointChanged     its weights aren't those that the request is pinned to
    ├── DeviceUnavailable         the device of the settings doesn't exist, or was lost
    ├── OutOfDeviceMemory         a single lane ran out of device memory at the smallest batch
    ├── NumericalFailure          not-a-number in the latents or in the decoded image
    ├── DeadlineExceeded
    ├── Cancelled
    └── EngineStopped             the device thread has ended; the request may be tried elsewhere
        ├── Withdrawn             the lane was taken back before its first step: there is another place for it
        └── ReplicaFull           the replica has no room for the lane, which waits in front of it

The front adds its own branches (serve_app/errors.py) and maps every class to one HTTP status
(serve_app/api/http_status.py). Each class carries a stable `code`; the message is one line for people. Instances hold
nothing but their arguments, so that they survive pickling between processes.
"""

from typing import ClassVar


class DarkroomError(Exception):
    """Root of everything Darkroom raises on purpose."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return self.message


class InvalidRequest(DarkroomError):
    """The request can't be done as it is; `field` names the wrong part."""

    code = "invalid_request"


class UnknownCheckpoint(InvalidRequest):
    """No checkpoint of that name in the catalogue, or not one of the family that was meant."""

    code = "unknown_model"


class UnknownSampler(InvalidRequest):
    """No sampler of that name, or one that isn't linear and so can't run in a lane."""

    code = "unknown_sampler"


class LoraRefused(InvalidRequest):
    """No LoRA of that name, or one whose file can't be used, at all or with this model; the message names it."""

    code = "lora_refused"


class ControlnetRefused(InvalidRequest):
    """No ControlNet of that name, or one whose file can't be used, at all or with this model; the message names it."""

    code = "controlnet_refused"


class IpAdapterRefused(InvalidRequest):
    """No IP-Adapter of that name, or one whose file can't be used, at all or with this model; the message names it."""

    code = "ip_adapter_refused"


class VaeRefused(InvalidRequest):
    """No VAE of that name, or one whose file can't be used, at all or with this model; the message names it."""

    code = "vae_refused"


class UpscalerRefused(InvalidRequest):
    """No upscaler of that name, or one whose file can't be used; the message names it."""

    code = "upscaler_refused"


class DetectorRefused(InvalidRequest):
    """No detector of that name, or one whose file can't be used; the message names it."""

    code = "detector_refused"


class StateRefused(InvalidRequest):
    """A lane can't go on from the state that came with its request, which may be tried without."""

    code = "state_refused"


class DoesNotFit(InvalidRequest):
    """The request, or a checkpoint, doesn't fit the memory in any batch."""

    code = "does_not_fit"


class CheckpointError(DarkroomError):
    """A checkpoint is missing, partial, of the wrong kind, or unsafe to load; the message names the file."""

    code = "checkpoint_error"


class CheckpointChanged(CheckpointError):
    """The weights of a request's checkpoint aren't those that it is pinned to."""

    code = "checkpoint_changed"


class DeviceUnavailable(DarkroomError):
    """The device that the settings ask for isn't there, or was lost."""

    code = "device_unavailable"


class OutOfDeviceMemory(DarkroomError):
    """A single lane ran out of device memory at the smallest batch."""

    code = "out_of_device_memory"


class NumericalFailure(DarkroomError):
    """Not-a-number in the latents, or in the image even after decoding in a wider type."""

    code = "numerical_failure"


class DeadlineExceeded(DarkroomError):
    """The request's time ran out before its image was finished."""

    code = "deadline_exceeded"


class Cancelled(DarkroomError):
    """The request was cancelled; its lane left at the next step."""

    code = "cancelled"


class EngineStopped(DarkroomError):
    """The device thread has ended; the request may be tried on another replica."""

    code = "engine_stopped"


class Withdrawn(EngineStopped):
    """The lane was taken back before its first step: whoever sent it has another place for it."""


class ReplicaFull(EngineStopped):
    """The replica holds as many lanes as it takes; the request is to wait in front of it."""
