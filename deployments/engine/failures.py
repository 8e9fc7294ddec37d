"""What somebody is told whose image or checkpoint failed: whatever was raised, as one of Darkroom's errors.

Knows nothing of who is told. A lost device (torch.AcceleratorError) is no single image's failure and isn't for here.
"""

import logging

import torch

from deployments.engine.errors import DarkroomError, OutOfDeviceMemory

logger = logging.getLogger(__name__)


def as_darkroom_error(error: Exception, what: str) -> DarkroomError:
    """`error` itself if it is one of ours; else one that says `what` failed.

    What nobody foresaw is logged whole and told without its text, which may quote anything.
    """
    if isinstance(error, DarkroomError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfDeviceMemory(f"{what}: out of device memory: {error}")
    logger.error("%s", what, exc_info=error)
    return DarkroomError(f"{what}: {type(error).__name__}")
