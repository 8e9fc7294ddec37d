"""The command that makes a key."""

import stat
from pathlib import Path

import pytest

from serve_app.auth.key_file import KeyRing, Scope
from serve_app.config.access import AccessSettings
from tests.serve_app.cli.command_line import darkroom, document


def test_prints_the_key_once_and_its_line(tmp_path: Path) -> None:
    key, line = darkroom("keys", "make", "alice").stdout.splitlines()
    file = tmp_path / "keys"
    file.write_text(line)
    found = KeyRing(AccessSettings(keys_file=file)).find(key)
    assert found is not None
    assert (found.tenant, found.scopes) == ("alice", {Scope.GENERATE, Scope.READ})


def test_appends_to_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = darkroom("keys", "make", "alice", "--file", file).stdout.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().rstrip("\n"))  # as some editors leave it
    second = document(darkroom("keys", "make", "ops", "--scopes", "admin", "--file", file, "--json"))["key"]
    ring = KeyRing(AccessSettings(keys_file=file))
    found = [ring.find(key) for key in (first, second)]
    assert [(key.tenant, key.scopes) for key in found if key is not None] == [
        ("alice", {Scope.GENERATE, Scope.READ}),
        ("ops", {Scope.ADMIN}),
    ]
    assert first not in file.read_text()
    assert second not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "about"),
    [
        (["a b"], 2, "'a b': a tenant has 1 to 64 of A-Z"),
        (["alice", "--scopes", "write"], 2, "scopes: generate, read, admin"),
        (["alice", "--file", "/nowhere/keys"], 1, "/nowhere/keys"),
    ],
)
def test_says_what_is_wrong(arguments: list[str], exit_code: int, about: str) -> None:
    result = darkroom("keys", "make", *arguments, COLUMNS="200")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert about in result.stderr
