"""Images of every API are signed, and answer who asks them."""

import asyncio
import base64
import io
import json
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from PIL import Image
from webuiapi import WebUIApi

from serve_app.auth.key_file import Scope
from serve_app.config.settings import Settings
from serve_app.errors import SignatureFailed
from serve_app.images.infotext import texts_of
from serve_app.provenance.signer import ImageSigner
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import call
from tests.serve_app.front import Front, front
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import encoded, file_of, gradient, received, sent
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.provenance.authorities import Signer, new_signer, pem
from tests.serve_app.provenance.png_chunks import without_credentials
from tests.serve_app.upscaler_files import write_upscaler

PICTURE = gradient(256, 256)


@pytest.fixture(scope="module")
def signer() -> Signer:
    return new_signer()


@pytest.fixture
def settings(raw_settings: dict[str, Any], signer: Signer, tmp_path: Path) -> Settings:
    c2pa_settings = signer.settings(tmp_path / "signer").model_dump(mode="json")
    return Settings.model_validate({**raw_settings, "provenance": {"c2pa": c2pa_settings}})


def reference(data: bytes, content_type: str, signer: Signer) -> dict[str, Any]:
    """What the library's own reader says."""
    settings = {"trust": {"trust_anchors": pem(signer.authority)}, "verify": {"verify_trust": True}}
    with (
        c2pa.Context.from_dict(settings) as context,
        c2pa.Reader(content_type, io.BytesIO(data), context=context) as read,
    ):
        document: dict[str, Any] = json.loads(read.json())
    return document


def actions_of(document: dict[str, Any]) -> list[str]:
    [actions] = [
        assertion["data"]["actions"]
        for assertion in document["manifests"][document["active_manifest"]]["assertions"]
        if assertion["label"].startswith("c2pa.actions")
    ]
    return [action["action"] for action in actions]


Draw = Callable[[Front], Awaitable[bytes]]


async def native(one: Front, **fields: Any) -> bytes:
    answer = await one.generate(**{"seed": 2} | fields)
    assert answer.json()["images"][0]["signed"] is True, answer.text
    return (await one.http.get(answer.json()["image_url"])).content


async def by_jpeg(one: Front) -> bytes:
    return await native(one, output_format="jpeg")


async def by_webp(one: Front) -> bytes:
    return await native(one, output_format="webp")


async def from_image(one: Front) -> bytes:
    return await native(one, image=sent(PICTURE), strength=0.5)


async def from_mask(one: Front) -> bytes:
    mask = np.zeros((256, 256), np.uint8)
    mask[64:128, 64:128] = 255
    return await native(one, image=sent(PICTURE), mask=sent(mask), strength=0.5)


async def outpainted(one: Front) -> bytes:
    return await native(one, image=sent(PICTURE), outpaint={"right": 64}, strength=0.9)


async def second_pass(one: Front) -> bytes:
    return await native(one, hires={"scale": 1.5})


async def upscaled(one: Front) -> bytes:
    answer = await one.http.post("/upscale", json={"image": sent(PICTURE), "scale": 2}, headers={"prefer": "wait=30"})
    return (await one.http.get(answer.json()["image_url"])).content


async def by_openai(one: Front) -> bytes:
    answer = await one.http.post(
        "/v1/images/generations", json={"prompt": "a red circle", "size": "256x256", "seed": 2}
    )
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


async def by_a1111(one: Front) -> bytes:
    answer = await one.http.post(
        "/sdapi/v1/txt2img", json={"prompt": "a red circle", "width": 256, "height": 256, "seed": 2}
    )
    return base64.b64decode(answer.json()["images"][0])


async def by_a1111_extras(one: Front) -> bytes:
    body = {"image": sent(PICTURE), "upscaling_resize": 2, "upscaler_1": "Lanczos"}
    return base64.b64decode((await one.http.post("/sdapi/v1/extra-single-image", json=body)).json()["image"])


async def by_a1111_extras_of_several(one: Front) -> bytes:
    body = {"imageList": [{"data": sent(PICTURE), "name": "one"}], "upscaling_resize": 2, "upscaler_1": "Lanczos"}
    return base64.b64decode((await one.http.post("/sdapi/v1/extra-batch-images", json=body)).json()["images"][0])


async def by_a1111_in_tiles(one: Front) -> bytes:
    body = {
        "init_images": [sent(PICTURE)],
        "prompt": "a red circle",
        "seed": 2,
        "width": 256,
        "height": 256,
        "script_name": "SD upscale",
        "script_args": [None, 64, "Lanczos", 1.0],  # one tile: another seed would be withheld
    }
    answer = await one.http.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 200, answer.json()["detail"]
    return base64.b64decode(answer.json()["images"][0])


async def by_hugging_face(one: Front) -> bytes:
    return (
        await one.http.post("/models/demo-sd15", json={"inputs": "a red circle", "parameters": {"seed": 2}})
    ).content


CREATED = ["c2pa.created"]
EDITED = ["c2pa.opened", "c2pa.edited"]


@pytest.mark.parametrize(
    ("draw", "kind", "actions"),
    [
        (native, "png", CREATED),
        (by_jpeg, "jpeg", CREATED),
        (by_webp, "webp", CREATED),
        (from_image, "png", EDITED),
        (from_mask, "png", EDITED),
        (outpainted, "png", EDITED),
        (second_pass, "png", CREATED),
        (upscaled, "png", EDITED),
        (by_openai, "png", CREATED),
        (by_a1111, "png", CREATED),
        (by_a1111_extras, "png", EDITED),
        (by_a1111_extras_of_several, "png", EDITED),
        (by_a1111_in_tiles, "png", EDITED),
        (by_hugging_face, "png", CREATED),
    ],
)
async def test_the_reference_trusts_images_of_every_api(
    draw: Draw, kind: str, actions: list[str], running: Front, signer: Signer
) -> None:
    data = await draw(running)
    document = reference(data, f"image/{kind}", signer)
    assert document["validation_state"] == "Trusted"
    assert actions_of(document) == actions
    assert b"Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/" in data
    parameters = texts_of(data)
    assert parameters is not None
    if draw not in (by_a1111_extras, by_a1111_extras_of_several, upscaled):  # of a picture that had none
        assert "Steps: " in parameters[0], "other tools read it as before"


async def archives_kept(running: Front) -> list[str]:
    stored = await running.service.images.files_by_job()
    return [name for names in stored.values() for name in names if name.endswith(".c2pa")]


async def test_the_ingredients_are_the_pictures_of_the_request(running: Front, signer: Signer) -> None:
    mine = await native(running, seed=6)
    again = await native(running, image=encoded(mine), strength=0.5)
    document = reference(again, "image/png", signer)
    [ingredient] = document["manifests"][document["active_manifest"]]["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert ingredient["active_manifest"] in document["manifests"], "its own credentials came along"
    async with asyncio.timeout(10):
        while await archives_kept(running):  # noqa: ASYNC110  # they go after the answer, there is no event
            await asyncio.sleep(0.01)


async def test_the_same_request_differs_by_its_credentials_alone(running: Front) -> None:
    asked = {"seed": 4, "reproducible": True}
    first, second = await native(running, **asked), await native(running, **asked)
    assert first != second
    assert read_manifest(first) == read_manifest(second)
    np.testing.assert_array_equal(received(first), received(second))
    assert without_credentials(first) == without_credentials(second)


async def test_a_request_that_comes_again_gets_the_stored_file(running: Front) -> None:
    files = []
    for _ in range(2):
        answer = await running.http.post(
            "/generate",
            json={"prompt": "a red circle", "seed": 2},
            headers={"prefer": "wait=30", "idempotency-key": "mine"},
        )
        files.append((await running.http.get(answer.json()["image_url"])).content)
    assert files[0] == files[1]


async def test_what_was_withheld_is_not_signed(running: Front) -> None:
    answer = (await running.generate(seed=3)).json()
    assert answer["status"] == "blocked"
    assert answer["images"][0]["signed"] is False


class BrokenSigner(ImageSigner):
    """Whose key has gone since the start."""

    def sign(self, *_: Any) -> bytes:
        raise SignatureFailed("the image couldn't be signed")


@pytest.mark.parametrize("on_failure", ["fail", "unsigned"])
async def test_a_signature_that_fails(
    on_failure: str, settings: Settings, stages: Stages, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.provenance.c2pa is not None
    section = settings.provenance.c2pa.model_copy(update={"on_failure": on_failure})
    own = settings.model_copy(update={"provenance": settings.provenance.model_copy(update={"c2pa": section})})
    async with front(own, stages) as one:
        monkeypatch.setattr(ImageSigner, "sign", BrokenSigner.sign)
        answer = (await one.generate(seed=2)).json()
        if on_failure == "fail":
            assert (answer["status"], answer["error"]["code"]) == ("failed", "signature_failed")
            return
        assert answer["status"] == "complete"
        assert answer["images"][0]["signed"] is False
        data = (await one.http.get(answer["image_url"])).content
        assert read_manifest(data) is not None
        asked = await one.http.post("/verify", json={"image": encoded(data)})
        assert asked.json()["credentials"] is None


async def test_ready_says_that_the_certificate_ends(
    running: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def signing() -> tuple[int, dict[str, str]]:
        answer = await running.http.get("/ready")
        return answer.status_code, answer.json()["signing"]

    assert await signing() == (200, {"state": "ready"})
    monkeypatch.setattr(ImageSigner, "seconds_left", lambda _: 86_400.0)
    status, state = await signing()
    assert (status, state["state"]) == (200, "expires soon")
    await running.maintenance.beat()
    await running.maintenance.beat()
    warnings = [
        record for record in caplog.records if "the certificate that signs images expires" in record.getMessage()
    ]
    assert len(warnings) == 1, "said once a day"
    monkeypatch.setattr(ImageSigner, "seconds_left", lambda _: -1.0)
    status, state = await signing()
    assert (status, state["state"]) == (503, "failed")
    assert "expired on" in state["reason"]
    answer = (await running.generate(seed=2)).json()
    assert answer["error"]["code"] == "signature_failed"


async def test_an_image_is_asked_by_json_or_as_a_file(running: Front) -> None:
    answer = await running.generate(prompt="a red circle", seed=4)
    data = (await running.http.get(answer.json()["image_url"])).content
    by_json = (await running.http.post("/verify", json={"image": encoded(data)})).json()
    as_file = (await running.http.post("/verify", files={"image": ("a.png", data)})).json()
    assert by_json == as_file
    assert by_json["credentials"]["state"] == "trusted"
    assert by_json["credentials"]["signature"]["name"] == "images of tests"
    assert by_json["credentials"]["generation"]["model"]["name"] == "demo-sd15"
    assert by_json["digital_source_type"].endswith("/trainedAlgorithmicMedia")
    assert by_json["parameters"].startswith("a red circle\n")
    assert by_json["job"]["job_id"] == answer.json()["job_id"]


async def test_a_changed_image_is_found_out(running: Front) -> None:
    data = bytearray(await native(running))
    at = data.index(b"IDAT") + 400
    data[at] ^= 1
    answer = (await running.http.post("/verify", json={"image": encoded(bytes(data))})).json()
    assert answer["credentials"]["state"] == "invalid"
    assert "assertion.dataHash.mismatch" in [problem["code"] for problem in answer["credentials"]["problems"]]
    assert answer["job"] is None


async def test_an_image_of_nobody(running: Front) -> None:
    answer = (await running.http.post("/verify", json={"image": sent(PICTURE)})).json()
    assert set(answer) == {"credentials", "digital_source_type", "parameters", "watermark", "job"}
    assert set(answer.values()) == {None}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"json": {"image": "bm8gaW1hZ2U="}}, "image"),
        ({"json": {"image": "!"}}, "image"),
        ({"json": {}}, "image"),
        ({"files": {"picture": ("a.png", b"x")}}, "image"),
        ({"data": {"image": "x"}, "files": {"other": ("a", b"")}}, "image"),
    ],
)
async def test_what_is_no_image_is_refused(body: dict[str, Any], field: str, running: Front) -> None:
    answer = await running.http.post("/verify", **body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field


async def test_a_job_is_its_tenants_to_see(
    settings: Settings, raw_settings: dict[str, Any], stages: Stages, tmp_path: Path
) -> None:
    keys = with_keys(
        raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ, ops=frozenset({Scope.ADMIN})
    )
    raw_settings["provenance"] = settings.provenance.model_dump(mode="json")
    async with front(Settings.model_validate(raw_settings), stages) as one:
        headers = {**bearer(keys["alice"]), "prefer": "wait=30"}
        drawn = await one.http.post("/generate", json={"prompt": "a red circle", "seed": 2}, headers=headers)
        data = (await one.http.get(drawn.json()["image_url"])).content
        jobs = {}
        for owner, key in keys.items():
            answer = await one.http.post("/verify", json={"image": encoded(data)}, headers=bearer(key))
            assert answer.json()["credentials"]["state"] == "trusted", owner
            jobs[owner] = answer.json()["job"]
        assert jobs["alice"] == jobs["ops"]
        assert jobs["alice"]["job_id"] == drawn.json()["job_id"]
        assert jobs["bob"] is None
        assert (await one.http.post("/verify", json={"image": encoded(data)})).status_code == 401


async def test_a_watermark_leads_to_its_tenants_job(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path
) -> None:
    """Also where all metadata is gone, and the file has another format."""
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    raw_settings["provenance"] = {"watermark": {"service_id": 4711}}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        headers = {**bearer(keys["alice"]), "prefer": "wait=30"}
        drawn = await one.http.post("/generate", json={"prompt": "a red circle", "seed": 2}, headers=headers)
        plain = file_of(received((await one.http.get(drawn.json()["image_url"])).content), "JPEG", quality=90)
        for owner, job_id in (("alice", drawn.json()["job_id"]), ("bob", None)):
            found = await one.http.post("/verify", json={"image": encoded(plain)}, headers=bearer(keys[owner]))
            assert found.json()["watermark"] == {"service_id": 4711, "job_end": drawn.json()["job_id"][-8:]}
            assert (found.json()["job"] or {}).get("job_id") == job_id
        raw_settings["provenance"] = {"watermark": {"service_id": 4712}}
    async with front(Settings.model_validate(raw_settings), stages) as other:
        found = await other.http.post("/verify", json={"image": encoded(plain)}, headers=bearer(keys["alice"]))
        assert found.json()["watermark"]["service_id"] == 4711, "another service's"
        assert found.json()["job"] is None


async def test_sd_upscale_s_whole_has_a_mark_of_its_own(raw_settings: dict[str, Any], stages: Stages) -> None:
    """Its tiles have marks, too, which overlap; the first tile's job is the one that is found."""
    raw_settings |= {"provenance": {"watermark": {"service_id": 4711}}, "safety": {"mode": "off"}}
    tiles = {"width": 128, "height": 128, "script_name": "SD upscale", "script_args": [None, 64, "Lanczos", 1.5]}
    asked = {"prompt": "a red circle", "seed": 2, "init_images": [sent(PICTURE)], **tiles}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        answer = await one.http.post("/sdapi/v1/img2img", json=asked)
        assert answer.status_code == 200, answer.text
        found = (await one.http.post("/verify", json={"image": answer.json()["images"][0]})).json()
        jobs = (await one.service.store.page(tenant=None, limit=100)).jobs  # the last one first
    assert len(jobs) == 25
    assert found["watermark"] == {"service_id": 4711, "job_end": jobs[-1].id[-8:]}
    assert found["job"]["job_id"] == jobs[-1].id


async def test_what_a1111_puts_together_names_its_models(settings: Settings, stages: Stages, tmp_path: Path) -> None:
    write_upscaler(tmp_path, "twofold", 2)
    own = {"upscalers": {"folder": str(tmp_path)}, "safety": {"mode": "off"}}
    provenance = settings.provenance.model_dump(mode="json")
    provenance["c2pa"]["prompt"] = True
    asked = {"prompt": "a red circle", "seed": 2, "init_images": [sent(PICTURE)], "width": 512, "height": 512}
    tiles = {"script_name": "SD upscale", "script_args": [None, 64, "twofold", 2.0]}
    enlarged = {"image": sent(PICTURE), "upscaling_resize": 2, "upscaler_1": "twofold"}
    raw = settings.model_dump(mode="json", exclude_unset=True)
    async with front(Settings.model_validate({**raw, **own, "provenance": provenance}), stages) as one:
        whole = (await one.http.post("/sdapi/v1/img2img", json={**asked, **tiles})).json()["images"][0]
        extra = (await one.http.post("/sdapi/v1/extra-single-image", json=enlarged)).json()["image"]
        said = [
            (await one.http.post("/verify", json={"image": image})).json()["credentials"]["generation"]
            for image in (whole, extra)
        ]
        drawn = read_manifest(await native(one))
    assert drawn is not None
    model = {"name": drawn.model.name, "sha256": drawn.model.hash}
    [upscaler] = said[1]["upscalers"]
    assert upscaler["name"] == "twofold"
    assert len(upscaler["sha256"]) == 64
    assert said[1] == {"upscalers": [upscaler]}
    assert len(said[0].pop("jobs")) == 1
    assert said[0] == {"model": model, "upscalers": [upscaler], "prompt": "a red circle"}


async def test_pillow_reads_signed_files(running: Front) -> None:
    data = await native(running, seed=8)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert "Seed: 8" in image.info["parameters"]
        assert json.loads(image.info["darkroom"])["seed"] == 8


async def test_webuiapi_reads_signed_files(running: Front, url: str) -> None:
    data = await native(running, seed=8)

    def ask(api: WebUIApi) -> Any:
        with Image.open(io.BytesIO(data)) as image:
            return api.png_info(image)

    told = await call(url, ask)
    assert told.info.startswith("a red circle\nSteps: ")
    answer = await running.http.post("/sdapi/v1/png-info", json={"image": encoded(data)})
    assert answer.json()["parameters"]["Seed"] == "8"
    assert not [name for name in answer.json()["items"] if "xmp" in name]


async def test_without_provenance_nothing_is_signed(raw_settings: dict[str, Any], stages: Stages) -> None:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        answer = (await one.generate(seed=2)).json()
        assert answer["images"][0]["signed"] is False
        data = (await one.http.get(answer["image_url"])).content
        found = (await one.http.post("/verify", json={"image": encoded(data)})).json()
        assert found["credentials"] is None
        assert found["digital_source_type"].endswith("/trainedAlgorithmicMedia")
        assert "signing" not in (await one.http.get("/ready")).json()


@pytest.mark.parametrize("begin", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBP"])
async def test_what_only_begins_as_an_image_is_refused(running: Front, begin: bytes) -> None:
    answer = await running.http.post("/verify", files={"image": ("a.png", begin + b"nothing of the kind" * 9)})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "image isn't a readable PNG, JPEG or WebP file"


async def test_an_image_that_is_cut_off_or_too_large_is_still_asked(running: Front) -> None:
    data = await native(running)
    cut = (await running.http.post("/verify", json={"image": encoded(data[: data.index(b"IDAT") + 100])})).json()
    assert cut["credentials"]["state"] == "invalid"
    width = (1 << 20).to_bytes(4)
    head = data[12:16] + width + width + data[24:29]
    large = data[:12] + head + zlib.crc32(head).to_bytes(4) + data[33:]
    answer = (await running.http.post("/verify", json={"image": encoded(large)})).json()
    assert answer["credentials"]["state"] == "invalid"
