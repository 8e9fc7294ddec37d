"""The interactive documentation loads nothing from elsewhere: it works offline, and nobody else learns who reads it."""

import re
from collections.abc import AsyncIterator
from urllib.parse import urljoin, urlsplit

import pytest

from serve_app.config.settings import Settings
from tests.serve_app.front import Front, front, stand_ins

OWN = "http://darkroom"


@pytest.fixture
async def running(settings: Settings) -> AsyncIterator[Front]:
    async with front(settings, stand_ins()) as one:
        yield one


async def test_every_address_on_the_page_is_ours_and_answers(running: Front) -> None:
    page = (await running.http.get("/docs")).text
    addresses = re.findall(r"""(?:href|src)="([^"]*)"|url: '([^']*)'""", page)
    found = [one or other for one, other in addresses]
    assert len(found) == 4, found  # style, icon, script, the document
    for address in found:
        url = urljoin(f"{OWN}/docs", address)
        assert urlsplit(url).netloc == urlsplit(OWN).netloc
        response = await running.http.get(url)
        assert response.status_code == 200
        assert response.content
    assert "://" not in page


async def test_the_browser_is_told_to_load_nothing_else(running: Front) -> None:
    response = await running.http.get("/docs")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    sources = {source for allowed in policy.values() for source in allowed.split()}
    schemes = {source for source in sources if not source.startswith("'")}
    assert schemes == {"data:", "blob:"}
    # one inline script, one hash
    assert response.text.count("<script>") == policy["script-src"].count("'sha256-") == 1
    assert "unsafe" not in policy["script-src"]
    assert '"validatorUrl": null' in response.text


async def test_files_of_the_style_sheet_are_in_it(running: Front) -> None:
    style = (await running.http.get("/docs-files/swagger-ui.css")).text
    assert style
    assert all(address.startswith("data:") for address in re.findall(r"url\(['\"]?([^)'\"]+)", style))
    assert "@import" not in style


async def test_errors_of_the_files_are_those_of_their_own_path(running: Front) -> None:
    other = await running.http.get("/docs-files/sdapi/v1/txt2img")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "unknown_route")  # not in A1111's form
    answer = await running.http.post("/docs-files/generate")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/docs-files/", "/docs-files/nope.js", "/docs-files/..%2f__init__.py", "/redoc"])
async def test_nothing_else_is_served(running: Front, path: str) -> None:
    response = await running.http.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_route")
