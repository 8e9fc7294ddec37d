import io
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from deployments.engine.types import Pixels
from serve_app.config.provenance import WatermarkSettings
from serve_app.config.settings import OutputFormat, Settings
from serve_app.images.infotext import texts_of
from serve_app.provenance.watermark import ImageWatermark
from serve_app.provenance.watermark_payload import WatermarkPayload
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.images.manifest_files import read_manifest

MARK = WatermarkSettings(service_id=4711)


def marking(raw_settings: dict[str, Any]) -> Settings:
    return Settings.model_validate({**raw_settings, "provenance": {"watermark": MARK.model_dump(mode="json")}})


async def drawn(one: Front, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
    answer = (await one.generate(**{"seed": 2} | fields)).json()
    return answer, [(await one.http.get(image["url"])).content for image in answer["images"] if image["url"]]


def pixels_of(file: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@pytest.mark.parametrize("output_format", get_args(OutputFormat))
async def test_images_name_their_service_and_job(
    raw_settings: dict[str, Any], stages: Stages, output_format: OutputFormat
) -> None:
    async with front(marking(raw_settings), stages) as one:
        answer, [file] = await drawn(one, output_format=output_format)
        payload = ImageWatermark(MARK).read(pixels_of(file))
        assert payload == WatermarkPayload(4711, answer["job_id"][-8:])
        page = await one.service.store.page(tenant=None, limit=2, id_end=payload.job_end)
        assert [job.id for job in page.jobs] == [answer["job_id"]]


async def test_a_mark_changes_the_pixels_alone(raw_settings: dict[str, Any], stages: Stages) -> None:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        _, [unmarked] = await drawn(one)
    async with front(marking(raw_settings), stages) as one:
        answer, [marked] = await drawn(one)
    assert read_manifest(marked) == read_manifest(unmarked)
    assert texts_of(marked) == texts_of(unmarked)
    np.testing.assert_array_equal(pixels_of(marked), ImageWatermark(MARK).mark(pixels_of(unmarked), answer["job_id"]))
    assert (pixels_of(marked) != pixels_of(unmarked)).any()


async def test_a_blurred_image_is_marked(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["safety"] = {"mode": "blur"}
    async with front(marking(raw_settings), stages) as one:
        answer, [file] = await drawn(one, seed=3)  # which the stand-in classifier flags
    assert answer["images"][0]["nsfw"]["action"] == "blurred"
    assert ImageWatermark(MARK).read(pixels_of(file)) == WatermarkPayload(4711, answer["job_id"][-8:])
