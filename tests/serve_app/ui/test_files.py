"""The playground's files, as the front serves them: nothing of them is from elsewhere, and nothing else is served."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

import serve_app
from serve_app.config.settings import Settings
from tests.serve_app.front import Front, front, stand_ins
from tests.serve_app.keyed import GENERATE_READ, with_keys
from tests.serve_app.ui.conftest import settings_in

FOLDER = Path(serve_app.__file__).parent / "ui"
FILES = sorted(path.name for path in FOLDER.iterdir())
MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Front]:
    """With keys, of which the page and its files need none."""
    raw = settings_in(tmp_path)
    with_keys(raw, tmp_path / "keys", alice=GENERATE_READ)
    async with front(Settings.model_validate(raw), stand_ins()) as one:
        yield one


async def test_the_page_s_policy_lets_it_load_only_what_is_here(running: Front) -> None:
    response = await running.http.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


async def test_a_copy_is_good_while_the_content_is_the_same(running: Front) -> None:
    for path in ("/", "/ui/main.js"):
        first = await running.http.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = await running.http.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        other = await running.http.get(path, headers={"if-none-match": '"other"'})
        assert (other.status_code, other.content) == (200, first.content)
    tags = [(await running.http.get(f"/ui/{name}")).headers.get("etag") for name in FILES if name != "index.html"]
    assert len(set(tags)) == len(FILES) - 1


async def test_every_file_that_is_named_is_served_with_its_type(running: Front) -> None:
    page = (await running.http.get("/")).text
    named = set(re.findall(r'(?:href|src)="ui/([^"]+)"', page))
    for path in FOLDER.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', path.read_text()))
    assert named == set(FILES) - {"index.html"}  # none is missing, none is left over, all are loaded ahead
    for name in named:
        response = await running.http.get(f"/ui/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"] == MEDIA_TYPES["." + name.partition(".")[2]]
        assert response.content == (FOLDER / name).read_bytes()
    assert set(re.findall(r'modulepreload" href="ui/([^"]+)"', page)) == {
        name for name in named if name.endswith(".js") and name not in ("main.js", "theme.js")
    }


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_an_address_elsewhere_or_makes_markup_of_text(name: str) -> None:
    text = (FOLDER / name).read_text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)) - {"http://www.w3.org/2000/svg"}
    assert addresses == set()
    assert (
        re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|@import", text) is None
    )
    if name == "index.html":
        assert re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text) is None


@pytest.mark.parametrize("path", ["/ui/", "/ui/index.html", "/ui/nope.js", "/ui/..%2fapp.py", "/ui/a/b", "/ui"])
async def test_nothing_else_is_served(running: Front, path: str) -> None:
    response = await running.http.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_route")


def test_the_files_are_in_the_package() -> None:
    project = read_configuration(Path(__file__).parents[3] / "pyproject.toml", expand=False)
    (pattern,) = project["tool"]["setuptools"]["package-data"]["serve_app"]
    assert sorted(path.name for path in FOLDER.parent.glob(pattern)) == FILES
