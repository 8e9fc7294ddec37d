"""API keys: what the file may hold, whose a key is, and how a changed file takes effect."""

import hashlib
import os
from pathlib import Path

import pytest

from serve_app.auth.key_file import BadKeys, KeyRing, Scope, new_key, parse_keys
from serve_app.config.access import AccessSettings

DIGEST = "sha256:" + "0" * 64
BOTH = frozenset({Scope.GENERATE, Scope.READ})


def ring(path: Path) -> KeyRing:
    return KeyRing(AccessSettings(keys_file=path, reload_s=0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_a_key_is_found_by_its_line_alone(file: Path) -> None:
    key, line = new_key("alice", BOTH)
    file.write_text(f"# people\n\n{line}   # since November\n")
    found = ring(file).find(key)
    assert found is not None
    assert (found.tenant, found.scopes) == ("alice", BOTH)
    assert key not in file.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in line


def test_keys_are_long_and_never_twice() -> None:
    keys = {new_key("alice", BOTH)[0] for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key.split("_", 2)[2]) == 43 for key in keys)  # 256 bits in base64


def test_what_is_no_key_finds_nothing(file: Path) -> None:
    key, line = new_key("alice", BOTH)
    file.write_text(line)
    keys = ring(file)
    prefix, key_id, secret = key.split("_", 2)
    other = new_key("alice", BOTH)[0].split("_", 2)[2]
    for wrong in (
        "",
        key[:-1],
        key + "a",
        f"{prefix}_{key_id}_{other}",
        f"{prefix}_00000000_{secret}",
        line,
        key + "\n",
    ):
        assert keys.find(wrong) is None
    assert keys.find(key) is not None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"0000000g a read {DIGEST}", "8 and the digest 64"),
        (f"000000 a read {DIGEST}", "8 and the digest 64"),
        ("00000000 a read sha256:00", "8 and the digest 64"),
        ("00000000 a read " + "0" * 64, "8 and the digest 64"),
        (f"00000000 a/b read {DIGEST}", "a tenant has"),
        (f"00000000 {'a' * 65} read {DIGEST}", "a tenant has"),
        (f"00000000 a write {DIGEST}", "scopes are generate, read, admin"),
        (f"00000000 a , {DIGEST}", "scopes are"),
        (f"00000000 a {DIGEST}", "not `id tenant"),
        (f"00000000 a read {DIGEST} more", "not `id tenant"),
        (f"00000000 a read {DIGEST}\n00000000 b read {DIGEST}", "line 2: the id stands twice"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_without_its_content(line: str, reason: str) -> None:
    with pytest.raises(BadKeys, match=r"^line ") as caught:
        parse_keys(line)
    assert reason in str(caught.value)
    assert DIGEST not in str(caught.value)


def test_a_changed_file_counts_at_once(file: Path) -> None:
    (first, first_line), (second, second_line) = new_key("alice", BOTH), new_key("alice", BOTH)
    file.write_text(first_line)
    keys = ring(file)
    file.write_text(f"{first_line}\n{second_line}\n")
    assert keys.find(first) is not None
    assert keys.find(second) is not None
    file.write_text(f"{second_line}\n")
    assert keys.find(first) is None
    assert keys.find(second) is not None


def test_a_replaced_file_of_the_same_size_counts_too(file: Path) -> None:
    (first, first_line), (second, second_line) = new_key("alice", BOTH), new_key("alice", BOTH)
    file.write_text(first_line)
    keys = ring(file)
    seen = file.stat()
    beside = file.with_name("beside")
    beside.write_text(second_line)
    os.utime(beside, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    beside.replace(file)
    assert (keys.find(first), keys.find(second) is None) == (None, False)


def test_the_file_is_looked_at_no_oftener_than_the_settings_say(file: Path) -> None:
    now = 100.0
    (first, first_line), (second, second_line) = new_key("alice", BOTH), new_key("alice", BOTH)
    file.write_text(first_line)
    keys = KeyRing(AccessSettings(keys_file=file, reload_s=10), clock=lambda: now)
    file.write_text(second_line)
    now = 109.0
    assert keys.find(first) is not None
    now = 110.0
    assert keys.find(first) is None
    assert keys.find(second) is not None


@pytest.mark.parametrize("broken", ["nonsense", None, b"\xff\xfe"])
def test_a_broken_file_changes_nothing(file: Path, broken: str | bytes | None) -> None:
    key, line = new_key("alice", BOTH)
    file.write_text(line)
    keys = ring(file)
    match broken:
        case None:
            file.unlink()
        case bytes():
            file.write_bytes(broken)
        case str():
            file.write_text(broken)
    assert keys.find(key) is not None
    other, other_line = new_key("bob", BOTH)
    file.write_text(other_line)
    assert (keys.find(key), keys.find(other) is None) == (None, False)


def test_an_emptied_file_lets_nobody_in(file: Path) -> None:
    key, line = new_key("alice", BOTH)
    file.write_text(line)
    keys = ring(file)
    file.write_text("# nobody\n")
    assert keys.find(key) is None


@pytest.mark.parametrize("content", [None, "", "# nobody", "nonsense"])
def test_no_start_without_a_good_key(file: Path, content: str | None) -> None:
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadKeys):
        ring(file)


def test_keys_of_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    key, line = new_key("alice", BOTH)
    settings = AccessSettings(keys_env="DARKROOM_TEST_KEYS")
    with pytest.raises(BadKeys, match="DARKROOM_TEST_KEYS"):
        KeyRing(settings)
    monkeypatch.setenv("DARKROOM_TEST_KEYS", line)
    assert KeyRing(settings).find(key) is not None


def test_a_key_in_a_message_shows_no_digest(file: Path) -> None:
    key, line = new_key("alice", BOTH)
    file.write_text(line)
    assert "digest" not in repr(ring(file).find(key))
