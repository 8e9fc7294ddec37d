"""docs/clients.md: its examples run, and it names every call of every dialect. Those of two more pages run too."""

import gc
import os
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from serve_app.config.settings import Settings
from tests.serve_app.front import Front, front, stand_ins
from tests.serve_app.served import beside, served

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "clients.md").read_text()
# of each dialect all that its section shows, one after the other
SECTIONS = re.findall(r"^## (\w[\w ]*)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
EXAMPLES = [(name, re.findall(r"```python\n(.*?)```", section, re.DOTALL)) for name, section in SECTIONS]


@pytest.fixture
async def running(settings: Settings) -> AsyncIterator[Front]:
    async with front(settings, stand_ins()) as one:
        await one.batches.start()
        yield one


@pytest.mark.parametrize(("dialect", "blocks"), EXAMPLES, ids=[dialect for dialect, _ in EXAMPLES])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # an example is short: it closes nothing
async def test_an_example_runs(
    running: Front, online_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str, blocks: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks)
    async with served(running) as url:
        assert "http://127.0.0.1:8000" in code
        await beside(partial(exec, code.replace("http://127.0.0.1:8000", url), {}))
    with Image.open("circle.png") as image:
        assert image.getpixel((0, 0)) == (4, 4, 4)
    for name in set(re.findall(r"\bring\.png", code)):
        with Image.open(name) as image:
            assert image.size == (256, 256)


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_the_first_python_of_a_page_draws(
    running: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[0]
    async with served(running) as url:
        await beside(partial(exec, code.replace("http://127.0.0.1:8000", url), {}))
    gc.collect()  # the client's sockets, here where they are allowed
    stars = [name for name in os.listdir(tmp_path) if name.startswith("star-")]
    assert len(stars) == 1  # of two: the stand-in for the classifier withholds every other image


def test_each_dialect_has_its_example() -> None:
    assert all(blocks for _, blocks in EXAMPLES)


async def test_every_call_is_named(running: Front) -> None:
    document = (await running.http.get("/openapi.json")).json()
    calls = [
        (method.upper(), path, set(call["tags"]))
        for path, methods in document["paths"].items()
        for method, call in methods.items()
        if "tags" in call
    ]
    assert len(calls) > 25
    named = {
        word.strip("`") for line in PAGE.splitlines() if line.startswith("|") for word in re.split(r"[\s,|]+", line)
    }
    for method, path, _ in calls:
        short = re.sub(r"\{\w+\}", "{id}", path)
        assert short in named or short.rpartition("/")[2] in named, (method, path)
    assert {tag for _, _, tags in calls for tag in tags} == {dialect for dialect, _ in EXAMPLES}


async def test_what_calls_refer_to_is_described(running: Front) -> None:
    response = await running.http.get("/openapi.json")
    known = response.json()["components"]["schemas"]
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', response.text))
    assert (
        {"OpenAIImageRequest", "OpenAIEditRequest", "A1111TextToImage", "A1111Options", "HuggingFaceInputs"}
        <= referred
        <= set(known)
    )
