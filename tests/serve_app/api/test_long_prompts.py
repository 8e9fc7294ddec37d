"""A prompt of too many tokens is refused before there is a job; only those that may be too long are asked about."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, stand_ins

TOO_LONG = "red " * 601
SMALL = {"width": 128, "height": 128}


@pytest.fixture
def raw_settings(raw_settings: dict[str, Any]) -> dict[str, Any]:
    return {**raw_settings, "limits": {"prompt_chars": 4_000}}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/generate", {"prompt": TOO_LONG}, 422),
        ("/v1/images/generations", {"prompt": TOO_LONG}, 400),
        ("/sdapi/v1/txt2img", {"prompt": TOO_LONG, **SMALL}, 422),
        ("/predict", {"inputs": TOO_LONG}, 422),
    ],
)
async def test_refused_in_every_dialect(running: Front, path: str, body: dict[str, Any], status: int) -> None:
    response = await running.http.post(path, json=body)
    assert response.status_code == status
    field = "inputs" if path == "/predict" else "prompt"
    assert f"{field} has 601 tokens, which take 9 chunks of 75: at most 8" in response.text
    assert (await running.http.get("/jobs")).json()["jobs"] == []
    if path == "/generate":
        assert response.json()["error"]["field"] == "prompt"


async def test_only_what_may_be_too_long_is_asked_about(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path
) -> None:
    async def checked(settings: dict[str, Any], prompt: str, **fields: Any) -> bool:
        async with front(Settings.model_validate(settings), stages) as one:
            assert (await one.generate(prompt, seed=2, **SMALL, **fields)).json()["status"] == "complete"
        return prompt in await stages.text_encoder.texts_checked.remote()

    long = "red fox, " * 60
    assert not await checked(raw_settings, "a short one")
    assert await checked(raw_settings, long)
    assert await checked(raw_settings, "not all of the layers", clip_skip=1)
    assert await checked(raw_settings, "a second pass", negative_prompt=long, hires={"scale": 1.5})
    with_inversions = {**raw_settings, "stages": {"text_encoder": {"embeddings": str(tmp_path)}}}
    assert await checked(with_inversions, "any word may be many tokens")
    # an encoder that is lost in this moment refuses nothing
    assert await checked(raw_settings, "unanswered " + long)


@pytest.fixture(scope="module")
def stages() -> Stages:
    return stand_ins()
