"""Signing, checked by the library's own reader."""

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from PIL import Image

from serve_app.config.provenance import C2paSettings
from serve_app.config.settings import OutputFormat
from serve_app.errors import SignatureFailed
from serve_app.image_store.store import CONTENT_TYPES
from serve_app.images.encode import encode_image
from serve_app.images.infotext import texts_of
from serve_app.provenance.certificates import BadCredentials
from serve_app.provenance.content import definition_of
from serve_app.provenance.reading import read_credentials
from serve_app.provenance.signer import ImageSigner
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.test_encode import manifest, picture
from tests.serve_app.provenance.answering import answering
from tests.serve_app.provenance.authorities import KEYS, SIGNS_TIME, Signer, new_signer, pem

FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
JOB = "019c7d3f2a51c0b7e64f9d20a83b5e17"


def definition(content_type: str = "image/png", **changes: Any) -> dict[str, Any]:
    return definition_of(manifest(**changes), job_id=JOB, content_type=content_type, ingredients=0, prompt=False)


def state(data: bytes, content_type: str, authority: str) -> str:
    """What the library's reader says with this authority alone."""
    settings = {"trust": {"trust_anchors": authority}, "verify": {"verify_trust": True}}
    with (
        c2pa.Context.from_dict(settings) as context,
        c2pa.Reader(content_type, io.BytesIO(data), context=context) as read,
    ):
        return str(read.get_validation_state())


@pytest.fixture(scope="module")
def signer() -> Signer:
    return new_signer()


@pytest.fixture
def image_signer(signer: Signer, tmp_path: Path) -> ImageSigner:
    return ImageSigner(signer.settings(tmp_path))


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_reference_trusts_each_format(
    output_format: OutputFormat, signer: Signer, image_signer: ImageSigner
) -> None:
    kind = CONTENT_TYPES[output_format]
    unsigned = encode_image(picture(), output_format, manifest())
    signed = image_signer.sign(unsigned, kind, definition(kind))
    assert state(signed, kind, pem(signer.authority)) == "Trusted"
    assert state(signed, kind, pem(new_signer().authority)) == "Valid"
    # everything else is as it was
    assert read_manifest(signed) == manifest()
    assert texts_of(signed) == texts_of(unsigned)
    with Image.open(io.BytesIO(signed)) as after, Image.open(io.BytesIO(unsigned)) as before:
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


@pytest.mark.parametrize("algorithm", KEYS)
def test_every_algorithm_of_c2pa(algorithm: str, tmp_path: Path) -> None:
    signer = new_signer(algorithm)
    signed = ImageSigner(signer.settings(tmp_path)).sign(
        encode_image(picture(), "png", manifest()), "image/png", definition()
    )
    assert state(signed, "image/png", pem(signer.authority)) == "Trusted"


def test_several_threads_at_once(signer: Signer, image_signer: ImageSigner) -> None:
    files = [encode_image(picture(), "png", manifest(seed=seed)) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        signed = list(pool.map(lambda file: image_signer.sign(file, "image/png", definition()), files))
    assert [state(file, "image/png", pem(signer.authority)) for file in signed] == ["Trusted"] * 24
    assert [found.seed for file in signed if (found := read_manifest(file))] == list(range(24))


def test_a_certificate_that_c2pa_does_not_allow_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadCredentials, match=r"a first signature failed|isn't fit to sign"):
        ImageSigner(new_signer(purpose=None).settings(tmp_path))


def test_a_certificate_that_expires_later_signs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ImageSigner(new_signer(valid=(timedelta(hours=-1), timedelta(hours=1))).settings(tmp_path))
    assert 0 < short.seconds_left() < 3_700
    monkeypatch.setattr(ImageSigner, "seconds_left", lambda _: -1.0)
    with pytest.raises(SignatureFailed, match="expired on 20"):
        short.sign(encode_image(picture(), "png", manifest()), "image/png", definition())


async def test_unsigned_where_the_settings_allow_it(signer: Signer, tmp_path: Path) -> None:
    file = b"no image at all"
    lenient = ImageSigner(signer.settings(tmp_path / "lenient", on_failure="unsigned"))
    assert await lenient.signed(file, "image/png", definition()) == (file, False)
    with pytest.raises(SignatureFailed, match="couldn't be signed"):
        await ImageSigner(signer.settings(tmp_path / "strict")).signed(file, "image/png", definition())


SIGN = """
import sys
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
key = load_pem_private_key(open(sys.argv[1], "rb").read(), None)
sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read(), ec.ECDSA(hashes.SHA256())))
"""


def test_a_command_signs_in_place_of_a_key(signer: Signer, tmp_path: Path) -> None:
    (tmp_path / "sign.py").write_text(SIGN)
    key = tmp_path / "elsewhere.pem"
    key.write_text(signer.private())
    command = [sys.executable, str(tmp_path / "sign.py"), str(key)]
    image_signer = ImageSigner(signer.settings(tmp_path, key_file=None, key_command=command))
    signed = image_signer.sign(encode_image(picture(), "png", manifest()), "image/png", definition())
    assert state(signed, "image/png", pem(signer.authority)) == "Trusted"
    key.unlink()
    with pytest.raises(SignatureFailed) as failed:
        image_signer.sign(encode_image(picture(), "png", manifest()), "image/png", definition())
    assert "exit status 1" in str(failed.value.__cause__)


@pytest.fixture
def signing_server(signer: Signer) -> Iterator[tuple[str, list[int]]]:
    """Signs what is posted; answers with the statuses that the list says, last first, and 200 when it is empty."""
    statuses: list[int] = []
    key = load_pem_private_key(signer.private().encode(), None)

    assert isinstance(key, ec.EllipticCurvePrivateKey)

    def answer(_: str, data: bytes) -> tuple[int, bytes]:
        return statuses.pop() if statuses else 200, key.sign(data, ec.ECDSA(hashes.SHA256()))

    with answering(answer) as url:
        yield f"{url}/sign", statuses


def test_an_address_signs_in_place_of_a_key(
    signer: Signer, signing_server: tuple[str, list[int]], tmp_path: Path
) -> None:
    url, statuses = signing_server
    image_signer = ImageSigner(signer.settings(tmp_path, key_file=None, key_url=url))
    file = encode_image(picture(), "jpeg", manifest())
    signed = image_signer.sign(file, "image/jpeg", definition("image/jpeg"))
    assert state(signed, "image/jpeg", pem(signer.authority)) == "Trusted"
    statuses.append(500)
    with pytest.raises(SignatureFailed) as failed:
        image_signer.sign(file, "image/jpeg", definition("image/jpeg"))
    assert "500" in str(failed.value.__cause__)
    assert image_signer.sign(file, "image/jpeg", definition("image/jpeg")), "the next one is signed again"


def test_a_command_that_fails_stops_the_start(signer: Signer, tmp_path: Path) -> None:
    settings = signer.settings(tmp_path, key_file=None, key_command=["false"])
    with pytest.raises(BadCredentials, match=r"a first signature failed: .*exit status 1"):
        ImageSigner(settings)


OPENSSL_TSA = """
[ tsa ]
default_tsa = authority
[ authority ]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


@pytest.fixture
def time_stamping(tmp_path: Path) -> Iterator[tuple[str, Signer]]:
    """The address of a time-stamping authority, which is OpenSSL's, and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs Debian's package `openssl`, whose time-stamping authority answers")
    clock, folder = new_signer("ps256", purpose=SIGNS_TIME), tmp_path / "clock"
    folder.mkdir()
    files = {"serial": "01", "config": OPENSSL_TSA.format(folder=folder), "key": clock.private()}
    files |= {"signer": pem(clock.certificate), "chain": pem(clock.authority)}
    for name, text in files.items():
        (folder / name).write_text(text)
    command = ["openssl", "ts", "-reply", "-config", "config", "-queryfile", "query", "-out", "reply"]
    command += ["-signer", "signer", "-inkey", "key", "-chain", "chain"]

    def answer(_: str, query: bytes) -> tuple[int, bytes]:
        (folder / "query").write_bytes(query)
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return 200, (folder / "reply").read_bytes()

    with answering(answer, "application/timestamp-reply") as url:
        yield f"{url}/", clock


def test_a_time_stamping_authority_says_when(signer: Signer, time_stamping: tuple[str, Signer], tmp_path: Path) -> None:
    url, clock = time_stamping
    image_signer = ImageSigner(signer.settings(tmp_path, timestamp_url=url))
    signed = image_signer.sign(encode_image(picture(), "png", manifest()), "image/png", definition())
    for anchors, trusted in ((image_signer.anchors, False), (image_signer.anchors + pem(clock.authority), True)):
        credentials = read_credentials(signed, "image/png", anchors)
        assert credentials is not None
        assert credentials.state == "trusted"
        assert credentials.signature is not None
        assert credentials.signature.time_trusted is trusted
        stamped = datetime.fromisoformat(credentials.signature.time or "")
        assert abs(datetime.now(UTC) - stamped) < timedelta(minutes=5)


def test_a_time_stamping_authority_that_is_away_stops_the_start(signer: Signer, tmp_path: Path) -> None:
    with pytest.raises(BadCredentials, match="a first signature failed"):
        ImageSigner(signer.settings(tmp_path, timestamp_url="http://127.0.0.1:9/"))


def test_a_development_certificate_is_made_and_signs(tmp_path: Path) -> None:
    image_signer = ImageSigner(C2paSettings(development_folder=tmp_path / "mine"))
    signed = image_signer.sign(encode_image(picture(), "png", manifest()), "image/png", definition())
    assert state(signed, "image/png", image_signer.anchors) == "Trusted"
