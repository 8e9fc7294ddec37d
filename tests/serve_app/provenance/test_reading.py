"""What is read of good and of hostile files; that nothing is fetched."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import c2pa
import pytest

from serve_app.images.encode import encode_image
from serve_app.provenance.ingredients import archives_of, used_pictures
from serve_app.provenance.reading import read_credentials
from serve_app.provenance.signer import ImageSigner
from serve_app.schemas.upscale_request import UpscaleRequest
from tests.serve_app.images.pictures import encoded
from tests.serve_app.images.test_encode import manifest, picture
from tests.serve_app.provenance.answering import answering
from tests.serve_app.provenance.authorities import Signer, new_signer, pem
from tests.serve_app.provenance.hostile_files import PNG, hostile
from tests.serve_app.provenance.test_signer import definition

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def signer() -> Signer:
    return new_signer()


@pytest.fixture(scope="module")
def signed(signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    image_signer = ImageSigner(signer.settings(tmp_path_factory.mktemp("signer")))
    return image_signer.sign(encode_image(picture(), "png", manifest()), PNG, definition())


def test_a_file_as_it_was_signed(signed: bytes, signer: Signer) -> None:
    known = read_credentials(signed, PNG, pem(signer.authority))
    unknown = read_credentials(signed, PNG)
    assert known is not None
    assert unknown is not None
    assert (known.state, unknown.state) == ("trusted", "valid")
    assert known.problems == []
    assert [problem.code for problem in unknown.problems] == ["signingCredential.untrusted"]
    assert known.signature == unknown.signature
    assert known.signature is not None
    assert (known.signature.name, known.signature.organisation) == ("images of tests", "Tests")


def test_a_file_without_credentials() -> None:
    assert read_credentials(encode_image(picture(), "png", manifest()), PNG) is None


# in a process of its own, which a crash of the library would end, with 2 GiB of address space beyond what it has
READ = """
import json, resource, sys
from pathlib import Path
from serve_app.provenance.reading import read_credentials
from serve_app.provenance.ingredients import archives_of, used_pictures
from serve_app.schemas.upscale_request import UpscaleRequest
import base64
read_credentials(b"", "image/png")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
folder = Path(sys.argv[1])
states = {}
for file in sorted(folder.iterdir()):
    data = file.read_bytes()
    found = read_credentials(data, "image/png", (folder.parent / "anchors.pem").read_text())
    states[file.stem] = None if found is None else found.state
    text = base64.b64encode(data).decode()
    [archive] = archives_of(used_pictures(UpscaleRequest(image=text)))
    assert len(archive) < 5 << 20, (file.stem, len(archive))
print(json.dumps(states))
"""


def test_no_hostile_file_is_believed_or_does_harm(signed: bytes, signer: Signer, tmp_path: Path) -> None:
    (tmp_path / "anchors.pem").write_text(pem(signer.authority))
    files = tmp_path / "files"
    files.mkdir()
    names = []
    for number, (name, data) in enumerate(hostile(signed)):
        names.append(name)
        (files / f"{number:02}.png").write_bytes(data)
    assert len(names) >= 30
    run = subprocess.run(
        [sys.executable, "-c", READ, str(files)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3_000:]
    states = json.loads(run.stdout.splitlines()[-1])
    believed = [names[int(number)] for number, state in states.items() if state not in (None, "invalid")]
    assert believed == []
    # what is whole but for its credentials says that they are no good
    assert states["00"] == states["01"] == states["02"] == "invalid"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An address, and what was asked of it."""
    asked: list[str] = []

    def answer(path: str, _: bytes) -> tuple[int, bytes]:
        asked.append(path)
        return 404, b""

    with answering(answer) as url:
        yield f"{url}/manifest", asked


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_nothing_is_fetched(kind: str, server: tuple[str, list[str]], signer: Signer) -> None:
    url, asked = server
    info = c2pa.C2paSignerInfo("es256", signer.chain.encode(), signer.private().encode(), None)
    elsewhere = io.BytesIO()
    with c2pa.Builder(definition(f"image/{kind}")) as builder, c2pa.Signer.from_info(info) as signing:
        builder.set_no_embed()
        builder.set_remote_url(url)
        builder.sign(signing, f"image/{kind}", io.BytesIO(encode_image(picture(), kind, manifest())), elsewhere)  # type: ignore[arg-type]  # of two formats
    with pytest.raises(c2pa.C2paError):
        c2pa.Reader(f"image/{kind}", io.BytesIO(elsewhere.getvalue()))
    assert asked == ["/manifest"], "the library would fetch it"
    asked.clear()
    credentials = read_credentials(elsewhere.getvalue(), f"image/{kind}")
    assert credentials is not None
    assert credentials.state == "elsewhere"
    assert url in credentials.problems[0].explanation
    assert archives_of(used_pictures(UpscaleRequest(image=encoded(elsewhere.getvalue()))))
    assert asked == []
