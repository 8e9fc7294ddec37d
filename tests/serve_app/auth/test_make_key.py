"""The command that makes a key."""

import stat
from pathlib import Path

import pytest

from serve_app.auth.keys import KeyRing, Scope
from serve_app.auth.make_key import main
from serve_app.config.access import AccessSettings


def test_prints_the_key_once_and_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["alice"]) == 0
    key, line = capsys.readouterr().out.splitlines()
    file = tmp_path / "keys"
    file.write_text(line)
    found = KeyRing(AccessSettings(keys_file=file)).find(key)
    assert found is not None
    assert (found.tenant, found.scopes) == ("alice", {Scope.GENERATE, Scope.READ})


def test_appends_to_a_file_that_only_its_owner_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    assert main(["alice", "--file", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().rstrip("\n"))  # as some editors leave it
    assert main(["ops", "--scopes", "admin", "--file", str(file)]) == 0
    keys = capsys.readouterr().out.split()
    ring = KeyRing(AccessSettings(keys_file=file))
    found = [ring.find(key) for key in keys]
    assert [(one.tenant, one.scopes) for one in found if one is not None] == [
        ("alice", {Scope.GENERATE, Scope.READ}),
        ("ops", {Scope.ADMIN}),
    ]
    assert not any(key in file.read_text() for key in keys)


@pytest.mark.parametrize("arguments", [["a b"], ["alice", "--scopes", "write"], ["alice", "--file", "/nowhere/keys"]])
def test_says_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err
