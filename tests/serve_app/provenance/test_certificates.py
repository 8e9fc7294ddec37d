from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serve_app.config.provenance import C2paSettings
from serve_app.provenance.certificates import BadCredentials, read_identity
from tests.serve_app.provenance.authorities import KEYS, Signer, new_signer, pem

DAY = timedelta(days=1)


@pytest.mark.parametrize("algorithm", KEYS)
def test_the_certificate_says_the_algorithm(algorithm: str, tmp_path: Path) -> None:
    signer = new_signer(algorithm)
    identity = read_identity(signer.settings(tmp_path))
    assert identity.algorithm == algorithm
    assert identity.name == "images of tests"
    assert identity.chain == signer.chain
    assert identity.key == signer.private()
    assert identity.anchors == pem(signer.authority)
    assert timedelta(days=364) < identity.expires - datetime.now(UTC) < timedelta(days=366)


def test_the_environment_in_place_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = new_signer()
    settings = C2paSettings(certificates_env="CHAIN", key_env="KEY")
    monkeypatch.setenv("KEY", signer.private())
    with pytest.raises(BadCredentials, match="the environment variable CHAIN isn't set"):
        read_identity(settings)
    monkeypatch.setenv("CHAIN", signer.chain)
    assert read_identity(settings).key == signer.private()


def test_a_command_needs_no_key(tmp_path: Path) -> None:
    signer = new_signer()
    settings = signer.settings(tmp_path, key_file=None, key_command=["cat"])
    assert read_identity(settings).key is None


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = str(tmp_path / "nothing")
    settings = new_signer().settings(tmp_path, key_file=None, key_command=[command])
    with pytest.raises(BadCredentials, match=rf"key_command: there is no program '{command}'"):
        read_identity(settings)


Change = Callable[[Signer, Path], None]


def overwritten(name: str, text: Callable[[Signer], str]) -> Change:
    def change(signer: Signer, folder: Path) -> None:
        (folder / name).write_text(text(signer))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, folder: (folder / "key_file").unlink(), "key_file can't be read: No such file"),
        (lambda _, folder: (folder / "certificates_file").unlink(), "certificates_file can't be read: No such file"),
        (overwritten("key_file", lambda _: "a secret"), r"the private key isn't one in PEM"),
        (overwritten("key_file", lambda signer: signer.private(b"password")), "the private key is encrypted"),
        (overwritten("key_file", lambda _: new_signer().private()), "isn't that of the certificate 'images of tests'"),
        (overwritten("certificates_file", lambda _: "no certificate"), "holds no certificates in PEM"),
        (
            overwritten("certificates_file", lambda signer: pem(signer.authority) + pem(signer.certificate)),
            "'authority of tests' isn't signed by 'images of tests', which follows it",
        ),
        (
            overwritten("certificates_file", lambda signer: pem(signer.certificate) + pem(new_signer().authority)),
            "'images of tests' isn't signed by 'authority of tests'",
        ),
        (overwritten("trusted_file", lambda _: "nobody"), "trusted_file holds no certificates in PEM"),
    ],
    ids=["no key", "no certificate", "no PEM", "password", "other key", "no chain", "order", "other issuer", "trust"],
)
def test_what_does_not_fit_together_is_named(change: Change, message: str, tmp_path: Path) -> None:
    signer = new_signer()
    settings = signer.settings(tmp_path)
    change(signer, tmp_path)
    with pytest.raises(BadCredentials, match=message) as refused:
        read_identity(settings)
    assert "a secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("valid", "message"),
    [((-2 * DAY, -DAY), "'images of tests' expired on 20"), ((DAY, 2 * DAY), "'images of tests' is valid from 20")],
)
def test_a_certificate_out_of_its_time(valid: tuple[timedelta, timedelta], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadCredentials, match=message):
        read_identity(new_signer(valid=valid).settings(tmp_path))


def test_a_development_folder_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    with pytest.raises(BadCredentials, match="can't be made: Directory not empty"):
        read_identity(C2paSettings(development_folder=tmp_path))
