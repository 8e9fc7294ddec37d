"""`darkroom batch` against a service."""

import json
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from serve_app.cli import batch
from tests.serve_app.cli.command_line import darkroom, darkroom_beside, document
from tests.serve_app.front import Front
from tests.serve_app.served import served

MATRIX = """
request: {prompt: a red circle, steps: 10}
axes:
  - {field: seed, values: [2, 4, 5]}
  - {replace: red, values: [red, green]}
"""


@pytest.fixture
async def url(running: Front) -> AsyncIterator[str]:
    async with served(running) as address:
        await running.batches.start()
        yield address


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(batch, "_POLL_S", 0.05)
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    return path


def written(path: Path, text: str) -> None:
    path.write_text(text)


async def test_draws_a_matrix_into_an_archive_and_a_sheet(url: str, matrix: Path, tmp_path: Path) -> None:
    archive, sheet = tmp_path / "images.zip", tmp_path / "sheet.png"
    result = await darkroom_beside("batch", matrix, "-o", archive, "--sheet", sheet, "--url", url)
    assert result.exit_code == 0, result.output
    assert "completed, 4 of 6 drawn" in result.stdout
    with zipfile.ZipFile(archive) as opened:
        assert len(opened.namelist()) == 5
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
    assert {"images.zip", "sheet.png"} <= set(os.listdir(tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    result = await darkroom_beside("batch", matrix, "-o", archive, "--url", url)
    assert result.exit_code == 2
    assert "exists already" in result.stderr


async def test_a_document_with_what_became_of_it(url: str, matrix: Path, tmp_path: Path) -> None:
    done = document(await darkroom_beside("batch", matrix, "--url", url, "--json"))
    assert (done["status"], done["completed"], done["failed"]) == ("completed", 4, 2)
    wrong = tmp_path / "wrong.json"
    written(wrong, json.dumps({"request": {"prompt": "x"}, "axes": [{"field": "sead", "values": [1]}]}))
    result = await darkroom_beside("batch", wrong, "--url", url, "--json")
    assert (result.exit_code, document(result)["error"]["field"]) == (1, "axes.0.field")


async def test_a_batch_without_an_image_fails(url: str, matrix: Path, tmp_path: Path) -> None:
    written(matrix, MATRIX.replace("[2, 4, 5]", "[3, 5]"))  # unsafe
    result = await darkroom_beside("batch", matrix, "-o", tmp_path / "images.zip", "--url", url)
    assert result.exit_code == 1
    assert not (tmp_path / "images.zip").exists()


@pytest.mark.parametrize("text", ["[1]", "{", "a: [", "\x00"])
def test_what_is_no_matrix(matrix: Path, text: str) -> None:
    matrix.write_text(text)
    result = darkroom("batch", matrix, "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert str(matrix) in result.stderr
