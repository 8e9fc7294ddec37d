"""The commands that make a certificate and that ask images."""

from pathlib import Path

import pytest

from serve_app.images.encode import encode_image
from serve_app.provenance.signer import ImageSigner
from tests.serve_app.cli.command_line import darkroom, document
from tests.serve_app.images.pictures import file_of, gradient
from tests.serve_app.images.test_encode import manifest, picture
from tests.serve_app.provenance.authorities import new_signer
from tests.serve_app.provenance.test_signer import definition


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed image; the authority's certificate lies beside it."""
    folder = tmp_path_factory.mktemp("signed")
    image_signer = ImageSigner(new_signer().settings(folder))
    image = folder / "signed.png"
    image.write_bytes(image_signer.sign(encode_image(picture(), "png", manifest()), "image/png", definition()))
    return image


def test_makes_a_certificate_once(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    made = darkroom("provenance", "init", folder)
    assert made.stdout.strip() == f"provenance: {{c2pa: {{development_folder: {folder}}}}}"
    assert "NOT FOR PRODUCTION" in made.stderr
    assert {path.name for path in folder.iterdir()} == {"authority.pem", "certificates.pem", "key.pem"}
    again = darkroom("provenance", "init", folder)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "exists already" in again.stderr


def test_says_who_signed_and_what(signed: Path) -> None:
    known = darkroom("verify", "--trusted", signed.parent / "trusted_file", signed)
    assert known.exit_code == 0
    assert known.stdout.splitlines() == [
        f"{signed}: valid signature, by somebody trusted",
        "  signed by images of tests",
        f"  c2pa.created trainedAlgorithmicMedia Darkroom {definition()['claim_generator_info'][0]['version']}",
    ]
    [unknown] = document(darkroom("verify", "--json", signed))
    assert unknown["credentials"]["state"] == "valid"
    assert unknown["parameters"].startswith("a large red circle\n")


def test_fails_unless_every_file_has_a_good_signature(signed: Path, tmp_path: Path) -> None:
    changed, unsigned, nobody = (tmp_path / name for name in ("changed.png", "unsigned.png", "nobody.jpg"))
    data = bytearray(signed.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    changed.write_bytes(data)
    unsigned.write_bytes(encode_image(picture(), "png", manifest()))
    nobody.write_bytes(file_of(gradient(16, 16), "JPEG"))
    answer = darkroom("verify", signed, changed, unsigned, nobody)
    assert answer.exit_code == 1
    lines = [line for line in answer.stdout.splitlines() if not line.startswith("  signed by")]
    assert lines[0].endswith("valid signature, by somebody unknown")
    assert f"{changed}: INVALID: changed since it was signed, or never good" in lines
    assert f"{unsigned}: no credentials" in lines
    assert "  says of itself, unsigned: trainedAlgorithmicMedia" in lines
    assert lines[-1] == f"{nobody}: no credentials"


def test_what_is_no_image_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("no image")
    answer = darkroom("verify", text)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert f"{text}: image isn't a PNG, JPEG or WebP file" in answer.stderr
