from pathlib import Path

import pytest

from tests.tiny_checkpoints import write_shallow_sd15


@pytest.fixture(scope="session")
def shallow_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shallow_sd15(tmp_path_factory.mktemp("checkpoints") / "shallow-sd15")
