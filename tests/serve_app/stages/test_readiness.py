"""Of what Serve says of a stage, the line that tells its operator something."""

import pytest

from serve_app.stages.readiness import telling_line

SLOW = """Deployment 'SD15' in application 'darkroom' has 1 replicas that have taken more than 30s to initialize.
This may be caused by a slow __init__ or reconfigure method."""
FAILED = """The deployment failed to start 3 times in a row.
  Traceback (most recent call last):
    File "loader.py", line 1, in load
  CheckpointError: /models/mine.safetensors: there is no such file
"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (SLOW, SLOW.splitlines()[0]),
        (FAILED, "CheckpointError: /models/mine.safetensors: there is no such file"),
        ("one line", "one line"),
        ("", ""),
    ],
)
def test_the_line(message: str, line: str) -> None:
    assert telling_line(message) == line
