import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.config.provenance import C2paSettings
from serve_app.provenance.certificates import read_identity
from serve_app.provenance.development import development_files


def test_it_is_made_once(tmp_path: Path) -> None:
    settings = C2paSettings(development_folder=tmp_path / "of" / "mine")
    first = read_identity(settings)
    assert "not for production" in first.name
    assert read_identity(settings) == first
    key = tmp_path / "of" / "mine" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_of_several_routers_one_makes_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: development_files(tmp_path / "mine").key.read_text(), range(8)))
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "mine" / "other"
    other.parent.mkdir()
    other.write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        development_files(tmp_path / "mine")
    assert [path.name for path in other.parent.iterdir()] == ["other"]
