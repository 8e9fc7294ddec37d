"""Image files made to hurt: whatever reads one answers or refuses, in little memory and a bounded time.

The readers run in a process of its own, whose processor time and high-water mark are what is judged.
"""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.images.infotext import texts_of
from tests.serve_app.front import Front
from tests.serve_app.images.image_bombs import TEXT, corpus, good

# reads all files of the corpus with all readers, and tells what each did to the process's high-water mark, in KiB
READER = """
import base64, json, resource, sys
from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import LimitsSettings
from serve_app.images.decode import read_source
from serve_app.images.infotext import texts_of
from tests.serve_app.images.image_bombs import corpus, good

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def source_of(data):
    try:
        return read_source(base64.b64encode(data).decode(), None, LimitsSettings().max_image_pixels)
    except InvalidRequest:
        return None

files = corpus()
for data in good().values():
    assert texts_of(data) is not None
    assert source_of(data) is not None
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
grown, raised = {}, {}
start = peak()
for name, data in files.items():
    before = peak()
    for reader in (texts_of, source_of):
        try:
            reader(data)
        except BaseException as error:
            raised[name] = repr(error)[:200]
    if peak() > before:
        grown[name] = peak() - before
json.dump({"files": len(files), "grown": grown, "raised": raised, "total": peak() - start}, sys.stdout)
"""

# Pillow reads up to 64 MiB of texts of one file
MOST_KIB = 80 << 10


def test_no_reader_raises_or_takes_much_memory() -> None:
    root = Path(__file__).parents[3]
    ran = subprocess.run([sys.executable, "-c", READER], cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout)
    assert told["files"] >= 200
    assert told["raised"] == {}
    assert told["total"] <= MOST_KIB, told["grown"]


def test_honest_files_are_still_read() -> None:
    for kind, data in good().items():
        assert texts_of(data) == (TEXT, {}), kind


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says of them
async def test_png_info_answers_or_refuses(running: Front) -> None:
    for name, data in list(corpus().items())[::3]:
        image = base64.b64encode(data).decode()
        response = await running.http.post("/sdapi/v1/png-info", json={"image": image})
        assert response.status_code in (200, 422), name
        assert "Traceback" not in response.text
