"""Text with secrets is read whole or not at all, and no complaint repeats it."""

from pathlib import Path

import pytest

from serve_app.config.secret_lines import read_lines


class Unreadable(ValueError):
    pass


def read(file: Path | None = None, variable: str | None = None) -> str:
    return read_lines(file, variable, setting="a.setting", error=Unreadable)


def test_a_file_and_a_variable_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"#" * (4 << 20))
    monkeypatch.setenv("DARKROOM_TEST_LINES", "ä\nb")
    assert read(file, "DARKROOM_TEST_LINES") == "#" * (4 << 20)
    assert read(variable="DARKROOM_TEST_LINES") == "ä\nb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lines: No such file or directory"),
        (b"secret" * (1 << 20), "lines: longer than 4194304 bytes"),
        (b"secret \xff", "lines: not UTF-8"),
    ],
)
def test_a_file_that_can_t_be_read_is_named_and_not_quoted(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "lines"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Unreadable, match=message) as caught:
        read(file)
    assert "secret" not in str(caught.value)


def test_a_variable_that_isn_t_there_is_named_with_its_setting() -> None:
    with pytest.raises(Unreadable, match=r"a\.setting: there is no environment variable DARKROOM_NO_SUCH"):
        read(variable="DARKROOM_NO_SUCH")
