"""`darkroom upscale` against a service: the file it leaves, and what it says of what goes wrong."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serve_app.cli.command_line import darkroom, darkroom_beside, document
from tests.serve_app.front import Front
from tests.serve_app.images.pictures import file_of, gradient


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "small.png"
    path.write_bytes(file_of(gradient(40, 30)))
    return path


def size_of(path: Path) -> tuple[int, int]:
    return Image.open(io.BytesIO(path.read_bytes())).size


async def test_a_larger_picture_in_a_file(running: Front, url: str, picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.webp"
    result = await darkroom_beside("upscale", picture, "-o", path, "--scale", 3, "--priority", "batch", "--url", url)
    assert (result.exit_code, result.stdout) == (0, f"{path}  120x90\n")
    assert size_of(path) == (120, 90)
    asked = (await running.newest()).request
    assert (asked["operation"], asked["upscaler"], asked["priority"]) == ("upscale", "lanczos", "batch")


async def test_the_job_as_json(running: Front, url: str, picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    result = await darkroom_beside("upscale", picture, "-o", path, "--width", 60, "--url", url, "--json")
    assert (result.exit_code, document(result)["images"][0]["file"]) == (0, str(path))
    assert size_of(path) == (60, 45)


async def test_a_file_that_nobody_has_named(
    running: Front, url: str, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = await darkroom_beside("upscale", picture, "--url", url)
    name = f"darkroom-{(await running.newest()).id[-8:]}.png"
    assert (result.exit_code, result.stdout) == (0, f"{name}  80x60\n")
    assert size_of(tmp_path / name) == (80, 60)


async def test_what_is_refused(running: Front, url: str, picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    result = await darkroom_beside("upscale", picture, "-o", path, "--upscaler", "nothing", "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no upscaler named 'nothing'" in result.stderr


async def test_an_unsafe_picture_leaves_no_file(running: Front, url: str, picture: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 40, 3), 1, np.uint8)).save(picture)
    result = await darkroom_beside("upscale", picture, "-o", tmp_path / "large.png", "--url", url)
    assert result.exit_code == 1
    assert "withheld" in result.stderr
    assert not (tmp_path / "large.png").exists()


def test_wrong_usage(picture: Path, tmp_path: Path) -> None:
    for arguments, about in (
        ([picture, "-o", "large.gif"], "must end in .png"),
        ([picture, "-o", picture], "exists already"),
        ([tmp_path / "nothing.png", "-o", "large.png"], "nothing.png"),
    ):
        result = darkroom("upscale", *arguments, COLUMNS="200")
        assert (result.exit_code, result.stdout) == (2, "")
        assert about in result.stderr
