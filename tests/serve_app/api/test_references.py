"""A request with reference pictures, from its pictures to what its lanes and the image encoder get; what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.engine.types import DenoiseRequest, ReferencePicture
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.pictures import gradient, sent, square

SIDE = 128
PICTURE = gradient(96, 64)
IMAGE = sent(PICTURE)
SMALL = {"width": SIDE, "height": SIDE, "steps": 10, "seed": 2}
MASK = square(SIDE, SIDE, 32, 32, 64)


def write(path: Path, **projection: tuple[int, ...]) -> None:
    """The header of an IP-Adapter; the front reads no more."""
    shapes = {f"image_proj.{name.replace('__', '.')}": shape for name, shape in projection.items()}
    shapes |= {f"ip_adapter.1.to_{kind}_ip.weight": (320, 768) for kind in "kv"}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "ip-adapters"
    made.mkdir()
    write(made / "base.safetensors", proj__weight=(3072, 1024))
    write(made / "plus.safetensors", latents=(1, 16, 768), proj_in__weight=(768, 1280))
    write(made / "face.safetensors", proj__0__weight=(8, 512), norm__weight=(8,))
    save_file({"weight": np.zeros(3, np.float32)}, made / "other.safetensors")
    (made / "pickle.bin").write_bytes(b"\x80\x02")
    return made


@pytest.fixture
async def running(raw_settings: dict[str, Any], stages: Stages, folder: Path) -> AsyncIterator[Front]:
    raw_settings["limits"] = {"max_image_pixels": 1 << 18, "max_image_body_bytes": 2 << 20}
    raw_settings["ip_adapters"] = {"folder": str(folder)}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


def kept_in(folder: Path) -> list[Path]:
    return list(folder.rglob("control-*.png"))


async def shown(running: Front, stages: Stages, *references: dict[str, Any], **fields: Any) -> list[DenoiseRequest]:
    answer = await running.generate(**{**SMALL, "references": list(references), **fields})
    assert answer.json()["status"] == "complete", answer.text
    lanes: list[DenoiseRequest] = await stages.denoisers["sd15"].lanes_asked.remote()
    return [lane for lane in lanes if lane.lane_id.startswith(answer.json()["job_id"])]


async def seen(stages: Stages) -> tuple[ReferencePicture, ...]:
    """What the encoder was sent last."""
    references: tuple[ReferencePicture, ...] = await stages.text_encoder.references_asked.remote()
    return references


async def test_what_a_lane_and_the_image_encoder_get(running: Front, stages: Stages) -> None:
    (lane,) = await shown(
        running,
        stages,
        {"model": "base", "image": IMAGE, "mask": sent(MASK), "scale": 0.5, "start": 0.1, "end": 0.9},
        {"model": "plus", "image": IMAGE, "scale": 0},
        {"model": "plus", "image": sent(PICTURE[::-1])},
        {"model": "base", "image": IMAGE},
    )
    base, plus, again = lane.references
    assert (base.name, base.scale, base.start, base.end) == ("base", 0.5, 0.1, 0.9)
    assert base.mask is not None
    assert (base.mask == MASK).all()
    assert (plus.name, plus.scale, plus.start, plus.end, plus.mask) == ("plus", 1.0, 0.0, 1.0, None)
    assert again.name == "base"
    pictures = await seen(stages)
    assert [(one.patches, one.channels) for one in pictures] == [(False, 1024), (True, 1280), (False, 1024)]
    for one, expected in zip(pictures, (PICTURE, PICTURE[::-1], PICTURE), strict=True):
        assert (one.pixels == expected).all()  # as it came: the encoder scales it itself
    job = await running.newest()
    records = job.result["images"][0]["manifest"]["references"]  # type: ignore[index]
    assert [(one["name"], one["scale"], one["mask_sha256"] is None) for one in records] == [
        ("base", 0.5, False),
        ("plus", 1.0, True),
        ("base", 1.0, True),
    ]
    assert records[0]["hash"] == "0" * 64


async def test_by_itself_it_is_what_the_image_begins_with(running: Front, stages: Stages) -> None:
    await shown(running, stages, {"model": "base"}, image=IMAGE, strength=0.5)
    assert ((await seen(stages))[0].pixels == PICTURE).all()


async def test_a_mask_follows_the_pass_and_the_part_that_is_drawn(running: Front, stages: Stages) -> None:
    masked = {"model": "base", "image": IMAGE, "mask": sent(MASK)}
    first, second = await shown(running, stages, masked, hires={"scale": 2.0})
    assert first.references[0].mask is not None
    assert second.references[0].mask is not None
    assert (second.references[0].mask == MASK.repeat(2, axis=0).repeat(2, axis=1)).all()
    large = gradient(256, 256)
    part = {"inpaint": {"only_masked": True, "padding": 0}, "mask": sent(square(256, 256, 64, 64, 64))}
    left = np.zeros((256, 256), np.uint8)
    left[:, :96] = 255
    (lane,) = await shown(running, stages, {**masked, "mask": sent(left)}, image=sent(large), **part)
    mask = lane.references[0].mask
    assert mask is not None
    assert mask.shape == (SIDE, SIDE)
    assert (mask[:, : SIDE // 2] == 255).all()
    assert (mask[:, SIDE // 2 :] == 0).all()


async def test_its_files_go_at_the_job_s_end(running: Front, tmp_path: Path) -> None:
    references = [{"model": "base", "image": IMAGE, "mask": sent(MASK)}, {"model": "plus", "image": IMAGE}]
    accepted = await running.generate("endless", wait=None, **SMALL, references=references)
    assert len(kept_in(tmp_path)) == 3
    await running.http.delete(f"/jobs/{accepted.json()['job_id']}")
    await until(lambda: not kept_in(tmp_path))


@pytest.mark.parametrize(
    ("references", "field", "message"),
    [
        ([{"model": "nothing", "image": IMAGE}], "references", "no IP-Adapter named 'nothing'"),
        ([{"model": "../base", "image": IMAGE}], "references", "no IP-Adapter named"),
        ([{"model": "face", "image": IMAGE}], "references", "FaceID"),
        ([{"model": "other", "image": IMAGE}], "references", "expected the tensors of an IP-Adapter"),
        ([{"model": "pickle", "image": IMAGE}], "references", "a pickle can run code"),
        ([{"model": "base"}], "references.0.image", "is missing"),
        ([{"model": "base", "image": "https://example.com/a.png"}], "references.0.image", "nothing is fetched"),
        ([{"model": "base", "image": IMAGE, "mask": "bm90aGluZw=="}], "references.0.mask", "isn't a readable PNG"),
        ([{"model": "base", "image": IMAGE}] * 5, "references", "5 references are sent, at most 4"),
        ([{"model": "base", "image": IMAGE, "start": 0.5, "end": 0.5}], "references.0.start", "not below end"),
        ([{"model": "base", "image": IMAGE, "scale": 11}], "references.0.scale", "11"),
        ([{"model": "base", "image": IMAGE, "weight": 1}], "references.0.weight", "unknown field"),
        ([{"image": IMAGE}], "references.0.model", "missing"),
    ],
)
async def test_what_is_refused(running: Front, references: Any, field: str, message: str, tmp_path: Path) -> None:
    answer = await running.http.post("/generate", json={"prompt": "x", **SMALL, "references": references})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field), answer.text
    assert message in error["message"]
    assert str(tmp_path) not in error["message"]
    assert not kept_in(tmp_path)


async def test_a_request_that_comes_again_is_known_by_its_pictures(running: Front) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"prompt": "x", **SMALL, "references": [{"model": "base", "image": IMAGE}]}
    again = {**body, "references": [{"model": "base", "image": f"data:image/png;base64,{IMAGE}"}]}
    other = {**body, "references": [{"model": "base", "image": sent(PICTURE[::-1])}]}
    masked = {**body, "references": [{"model": "base", "image": IMAGE, "mask": sent(MASK)}]}
    answers = [await running.http.post("/generate", json=one, headers=headers) for one in (body, again, other, masked)]
    assert answers[0].json()["job_id"] == answers[1].json()["job_id"]
    assert [answer.status_code for answer in answers[2:]] == [422, 422]


async def test_a1111_s_units(running: Front, stages: Stages) -> None:
    unit = {"module": "ip-adapter-auto", "model": "base [0123abcd]", "image": IMAGE, "weight": 0.6, "guidance_end": 0.8}
    units = [unit, {**unit, "module": "ip-adapter_clip_h", "model": "plus", "effective_region_mask": sent(MASK)}]
    body = {"prompt": "x", **SMALL, "alwayson_scripts": {"ControlNet": {"args": units}}}
    answer = await running.http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    job_id = (await running.newest()).id
    lanes: list[DenoiseRequest] = await stages.denoisers["sd15"].lanes_asked.remote()
    [lane] = [lane for lane in lanes if lane.lane_id.startswith(job_id)]
    base, plus = lane.references
    assert (base.name, base.scale, base.start, base.end, base.mask) == ("base", 0.6, 0.0, 0.8, None)
    assert plus.name == "plus"
    assert plus.mask is not None
    assert (plus.mask == MASK).all()
    assert (await running.http.get("/controlnet/model_list")).json()["model_list"] == ["base", "plus"]
    assert "ip-adapter-auto" in (await running.http.get("/controlnet/module_list")).json()["module_list"]
    for changes in ({"module": "ip-adapter_face_id"}, {"model": "nothing"}, {"module": "none"}):
        units = [{**unit, **changes, "effective_region_mask": sent(MASK)}]
        body["alwayson_scripts"] = {"ControlNet": {"args": units}}
        assert (await running.http.post("/sdapi/v1/txt2img", json=body)).status_code == 422, changes


async def test_the_list(running: Front) -> None:
    models = (await running.http.get("/models")).json()
    assert models["ip_adapters"] == ["base", "plus"]
    assert models["skipped"]["ip_adapters"].keys() == {"face", "other", "pickle"}
