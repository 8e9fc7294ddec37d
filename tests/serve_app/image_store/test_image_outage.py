"""While images can't be kept: jobs fail and say why, new ones are refused, and when it is over all is as before."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.config.settings import Settings
from serve_app.errors import StoreUnavailable
from serve_app.image_store.store import ImageName, ImageStore
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.object_server import ObjectServer

NAME = ImageName("0123456789abcdef" * 2, 1, 0, "png")


# images of even seeds pass the stand-in classifier


async def test_a_folder_that_goes_while_a_job_runs_fails_it_and_refuses_the_next(
    running: Front, tmp_path: Path
) -> None:
    await running.service.images.check()
    (tmp_path / "images").rename(tmp_path / "away")
    failed = (await running.generate(seed=2)).json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "store_unavailable")
    assert failed["image_url"] is None
    assert str(tmp_path) not in str(failed)
    refused = await running.generate(seed=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert len((await running.http.get("/jobs")).json()["jobs"]) == 1
    (tmp_path / "away").rename(tmp_path / "images")
    assert (await running.generate(seed=2)).json()["status"] == "complete"


async def test_a_full_disk_refuses_before_anything_is_drawn(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["images"]["min_free_bytes"] = 2**62
    async with front(Settings.model_validate(raw_settings), stages) as one:
        refused = await one.generate(seed=2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        assert (await one.http.get("/jobs")).json()["jobs"] == []


async def test_images_in_a_bucket_and_its_outage(
    raw_settings: dict[str, Any], stages: Stages, object_server: ObjectServer, bucket_url: str
) -> None:
    raw_settings["images"]["url"] = bucket_url
    async with front(Settings.model_validate(raw_settings), stages) as one:
        before = (await one.generate(seed=2)).json()
        shown = await one.http.get(before["image_url"])
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
        object_server.stop()
        try:
            failed = (await one.generate(seed=2, wait=120)).json()
            assert (failed["status"], failed["error"]["code"]) == ("failed", "store_unavailable")
            refused = await one.generate(seed=2)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert (await one.http.get(before["image_url"])).status_code == 503
        finally:
            object_server.restart()
        assert (await one.http.get(before["image_url"])).content == shown.content
        assert (await one.generate(seed=2)).json()["status"] == "complete"


async def test_a_bucket_that_is_not_there_is_told_at_the_start(object_server: ObjectServer) -> None:
    store = ImageStore("s3://no-such-bucket-anywhere/images")
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    assert "no-such-bucket" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        await store.write(NAME, b"x")
