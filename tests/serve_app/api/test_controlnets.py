"""A request with ControlNets, from its pictures to what its lanes look at; and what is refused."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.engine.types import DenoiseRequest
from serve_app.config.settings import Settings
from serve_app.errors import StoreUnavailable
from serve_app.images.preprocessors import canny, lineart
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.pictures import gradient, received, sent, square

SIDE = 128
PICTURE = np.repeat(square(SIDE, SIDE, 32, 40, 48)[..., None], 3, axis=2)
SMALL = {"width": SIDE, "height": SIDE, "steps": 10, "seed": 2}


def write(folder: Path, *, sdxl: bool = False) -> None:
    folder.mkdir(parents=True)
    config = {"_class_name": "ControlNetModel", "addition_embed_type": "text_time" if sdxl else None}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"conv_in.weight": np.ones((2, 2), np.float32)}, folder / "diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "controlnets"
    write(made / "edges")
    write(made / "pose")
    write(made / "xl", sdxl=True)
    save_file({"controlnet_cond_embedding.conv_in.weight": np.ones((2, 2), np.float32)}, made / "file.safetensors")
    data = (made / "file.safetensors").read_bytes()
    (made / "cut.safetensors").write_bytes(data[:-1])
    (made / "pickle.pth").write_bytes(b"\x80\x02")
    return made


@pytest.fixture
async def running(raw_settings: dict[str, Any], stages: Stages, folder: Path) -> AsyncIterator[Front]:
    raw_settings["limits"] = {"max_image_pixels": 1 << 18, "max_image_body_bytes": 2 << 20}
    raw_settings["controlnets"] = {"folder": str(folder)}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


def kept_in(folder: Path) -> list[Path]:
    return list(folder.rglob("control-*.png"))


async def lanes_of(stages: Stages, stage: str, job_id: str) -> list[DenoiseRequest]:
    lanes: list[DenoiseRequest] = await stages.denoisers[stage].lanes_asked.remote()
    return [lane for lane in lanes if lane.lane_id.startswith(job_id)]


async def steered(running: Front, stages: Stages, *controlnets: dict[str, Any], **fields: Any) -> list[DenoiseRequest]:
    answer = await running.generate(**{**SMALL, "controlnets": list(controlnets), **fields})
    assert answer.json()["status"] == "complete", answer.text
    return await lanes_of(stages, "sd15", answer.json()["job_id"])


async def test_nobody_is_shown_what_it_looks_at_and_it_goes_at_the_jobs_end(running: Front, tmp_path: Path) -> None:
    controlnets = [{"model": name, "image": sent(gradient(64, 64))} for name in ("edges", "pose")]
    accepted = await running.generate("endless", wait=None, **SMALL, controlnets=controlnets)
    job_id = accepted.json()["job_id"]
    assert len(kept_in(tmp_path)) == 2
    for name in (f"{job_id}-control-0.png", "control-0.png"):
        assert (await running.http.get(f"/images/{name}")).status_code == 404
    await running.http.delete(f"/jobs/{job_id}")
    await until(lambda: not kept_in(tmp_path))


async def test_files_are_kept_all_or_none(running: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(job_id: str, index: int, data: bytes) -> None:
        assert [file.name for file in (tmp_path / "images").glob("*/*")] == ["input.png"]
        raise StoreUnavailable("the image store is full")

    monkeypatch.setattr(running.service.images, "write_steering", full)
    controlnets = [{"model": "edges"}]
    refused = await running.generate(**SMALL, controlnets=controlnets, image=sent(gradient(64, 64)))
    assert refused.status_code == 503
    assert list((tmp_path / "images").glob("*/*")) == []


async def test_what_a_lane_looks_at(running: Front, stages: Stages) -> None:
    (lane,) = await steered(
        running,
        stages,
        {"model": "edges", "image": sent(PICTURE), "preprocessor": "canny", "scale": 0.5, "start": 0.1, "end": 0.9},
        {"model": "pose", "image": sent(gradient(64, 64))},
        {"model": "file", "image": sent(PICTURE), "scale": 0},
    )
    edges, pose = lane.controls
    assert (edges.name, edges.scale, edges.start, edges.end) == ("edges", 0.5, 0.1, 0.9)
    assert (edges.image == canny(PICTURE, 100, 200)).all()
    assert (pose.name, pose.scale, pose.start, pose.end) == ("pose", 1.0, 0.0, 1.0)
    assert pose.image.shape == (SIDE, SIDE, 3)
    job = await running.newest()
    manifest = job.result["images"][0]["manifest"]  # type: ignore[index]
    assert [(one["name"], one["preprocessor"], one["scale"]) for one in manifest["controlnets"]] == [
        ("edges", "canny", 0.5),
        ("pose", "none", 1.0),
    ]
    file = (await running.http.get((await running.http.get(f"/result/{job.id}")).json()["image_url"])).content
    told = (await running.http.post("/sdapi/v1/png-info", json={"image": sent(received(file))})).json()
    assert "ControlNet" not in told["info"]  # the pixels alone say nothing
    assert b"ControlNet 0: " in file


async def test_one_controlnet_with_two_pictures(running: Front, stages: Stages) -> None:
    other = np.ascontiguousarray(PICTURE[::-1])
    (lane,) = await steered(
        running, stages, {"model": "edges", "image": sent(PICTURE)}, {"model": "edges", "image": sent(other)}
    )
    assert [control.name for control in lane.controls] == ["edges", "edges"]
    for control, seen in zip(lane.controls, (PICTURE, other), strict=True):
        assert (control.image == seen).all()
    images = (await running.newest()).result["images"]  # type: ignore[index]
    assert [one["name"] for one in images[0]["manifest"]["controlnets"]] == ["edges", "edges"]


async def test_by_itself_it_looks_at_what_the_image_begins_with(running: Front, stages: Stages) -> None:
    (lane,) = await steered(
        running, stages, {"model": "edges", "preprocessor": "lineart"}, image=sent(PICTURE), strength=0.5
    )
    assert (lane.controls[0].image == lineart(PICTURE)).all()


async def test_with_a_part_alone_it_looks_at_that_part(running: Front, stages: Stages) -> None:
    large = gradient(256, 256)
    mask = square(256, 256, 64, 64, 64)
    (lane,) = await steered(
        running,
        stages,
        {"model": "edges", "image": sent(large)},
        image=sent(large),
        mask=sent(mask),
        inpaint={"only_masked": True, "padding": 0},
        width=128,
        height=128,
    )
    assert (lane.controls[0].image == large[64:128, 64:128].repeat(2, axis=0).repeat(2, axis=1)).all()


async def test_a_second_pass_looks_at_its_own_size(running: Front, stages: Stages) -> None:
    large = np.repeat(square(2 * SIDE, 2 * SIDE, 64, 80, 96)[..., None], 3, axis=2)
    first, second = await steered(
        running, stages, {"model": "edges", "image": sent(large), "preprocessor": "canny"}, hires={"scale": 2.0}
    )
    assert first.controls[0].image.shape == (SIDE, SIDE, 3)
    assert (second.controls[0].image == canny(large, 100, 200)).all()


async def test_a_refiner_is_not_steered(running: Front, stages: Stages) -> None:
    answer = await running.generate(
        model="demo-sdxl", controlnets=[{"model": "xl", "image": sent(PICTURE)}], refiner=True
    )
    job_id = answer.json()["job_id"]
    (base,), (refiner,) = [await lanes_of(stages, stage, job_id) for stage in ("sdxl_base", "sdxl_refiner")]
    assert [control.name for control in base.controls] == ["xl"]
    assert refiner.controls == ()


@pytest.mark.parametrize(("fit", "black_rows"), [("stretch", 0), ("crop", 0), ("pad", 32)])
async def test_how_a_picture_of_another_shape_is_fitted(
    running: Front, stages: Stages, fit: str, black_rows: int
) -> None:
    wide = np.full((64, 128, 3), 255, np.uint8)
    wide[0] = wide[-1] = wide[:, 0] = wide[:, -1] = 0
    (lane,) = await steered(running, stages, {"model": "edges", "image": sent(wide), "fit": fit})
    seen = lane.controls[0].image
    assert seen.shape == (SIDE, SIDE, 3)
    assert (seen[: black_rows - 2 if black_rows else 0].max(initial=0)) == 0
    assert seen[black_rows + 4, SIDE // 2].min() > 250


IMAGE = sent(PICTURE)


@pytest.mark.parametrize(
    ("controlnets", "field", "message"),
    [
        ([{"model": "nothing", "image": IMAGE}], "controlnets", "no ControlNet named 'nothing'"),
        ([{"model": "../edges", "image": IMAGE}], "controlnets", "no ControlNet named"),
        ([{"model": "cut", "image": IMAGE}], "controlnets", "cut short"),
        ([{"model": "pickle", "image": IMAGE}], "controlnets", "a pickle can run code"),
        ([{"model": "xl", "image": IMAGE}], "controlnets", "is for sdxl models, not for sd15"),
        ([{"model": "edges"}], "controlnets.0.image", "is missing"),
        ([{"model": "edges", "image": "https://example.com/a.png"}], "controlnets.0.image", "nothing is fetched"),
        (
            [{"model": "edges", "image": "bm90aGluZw=="}],
            "controlnets.0.image",
            "isn't a readable PNG, JPEG or WebP file",
        ),
        ([{"model": str(n), "image": IMAGE} for n in range(5)], "controlnets", "5 ControlNets are named, at most 4"),
        ([{"model": "edges", "image": IMAGE, "start": 0.5, "end": 0.5}], "controlnets.0.start", "not below end"),
        ([{"model": "edges", "image": IMAGE, "low": 200, "high": 100}], "controlnets.0.low", "above high"),
        ([{"model": "edges", "image": IMAGE, "scale": 11}], "controlnets.0.scale", "11"),
        ([{"model": "edges", "image": IMAGE, "preprocessor": "depth"}], "controlnets.0.preprocessor", "depth"),
        ([{"model": "edges", "image": IMAGE, "weight": 1}], "controlnets.0.weight", "unknown field"),
        ([{"image": IMAGE}], "controlnets.0.model", "missing"),
        ("edges", "controlnets", "edges"),
    ],
)
async def test_what_is_refused(running: Front, controlnets: Any, field: str, message: str, tmp_path: Path) -> None:
    answer = await running.http.post("/generate", json={"prompt": "x", **SMALL, "controlnets": controlnets})
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field), answer.text
    assert message in error["message"]
    assert str(tmp_path) not in error["message"]
    assert not kept_in(tmp_path)


async def test_a_large_picture_is_refused_before_it_is_decoded(running: Front) -> None:
    control = {"model": "edges", "image": sent(np.zeros((600, 600, 3), np.uint8))}
    answer = await running.http.post("/generate", json={"prompt": "x", "controlnets": [control]})
    assert answer.status_code == 422
    assert "360000 pixels, at most 262144" in answer.json()["error"]["message"]


async def test_a_request_that_comes_again_is_known_by_its_pictures(running: Front) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"prompt": "x", **SMALL, "seed": 1, "controlnets": [{"model": "edges", "image": IMAGE}]}
    again = {**body, "controlnets": [{"model": "edges", "image": f"data:image/png;base64,{IMAGE}"}]}
    other = {**body, "controlnets": [{"model": "edges", "image": sent(PICTURE[:, ::-1])}]}
    first, second, third = [
        await running.http.post("/generate", json=one, headers=headers) for one in (body, again, other)
    ]
    assert first.json()["job_id"] == second.json()["job_id"]
    assert third.status_code == 422


async def test_lists(running: Front) -> None:
    names = ["edges", "file", "pose", "xl"]
    models = (await running.http.get("/models")).json()
    assert models["controlnets"] == names
    assert "cut short" in models["skipped"]["controlnets"]["cut"]
    assert (await running.http.get("/controlnet/model_list")).json() == {"model_list": names}
    assert "canny" in (await running.http.get("/controlnet/module_list")).json()["module_list"]
    assert (await running.http.get("/controlnet/version")).json() == {"version": 3}


def unit(**changes: Any) -> dict[str, Any]:
    return {"alwayson_scripts": {"ControlNet": {"args": [{"image": IMAGE, "model": "edges [0123abcd]", **changes}]}}}


async def test_a1111_s_units(running: Front, stages: Stages) -> None:
    asked = unit(module="canny", weight=0.7, threshold_a=50, threshold_b=60.4, guidance_end=0.8, resize_mode=0)
    asked["alwayson_scripts"]["ControlNet"]["args"].append({"enabled": False, "model": "nothing"})
    answer = await running.http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **asked})
    assert answer.status_code == 200, answer.text
    (lane,) = await lanes_of(stages, "sd15", (await running.newest()).id)
    (control,) = lane.controls
    assert (control.name, control.scale, control.start, control.end) == ("edges", 0.7, 0.0, 0.8)
    assert (control.image == canny(PICTURE, 50, 60)).all()
    fields = {"init_images": [IMAGE], "denoising_strength": 0.5}
    answer = await running.http.post("/sdapi/v1/img2img", json={"prompt": "x", **SMALL, **fields, **unit(image=None)})
    assert answer.status_code == 200, answer.text
    (lane,) = await lanes_of(stages, "sd15", (await running.newest()).id)
    assert (lane.controls[0].image == PICTURE).all()


async def test_a1111_s_masks_of_one_colour_are_none_and_thresholds_are_in_either_order(
    running: Front, stages: Stages
) -> None:
    for brightness in (0, 255):
        mask = sent(np.full((SIDE, SIDE), brightness, np.uint8))
        asked = unit(module="canny", threshold_a=60, threshold_b=50, mask=mask)
        answer = await running.http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **asked})
        assert answer.status_code == 200, answer.text
        (lane,) = await lanes_of(stages, "sd15", (await running.newest()).id)
        assert (lane.controls[0].image == canny(PICTURE, 50, 60)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"module": "depth_midas"},
        {"control_mode": "ControlNet is more important"},
        {"control_mode": 1},
        {"mask": IMAGE},
        {"image": {"image": IMAGE, "mask": IMAGE}},
        {"hr_option": "Low res only"},
        {"model": "None"},
        {"model": "nothing"},
        {"weight": -1},
        {"weight": "much"},
    ],
)
async def test_what_a1111_s_units_cannot_have(running: Front, changes: dict[str, Any]) -> None:
    answer = await running.http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **unit(**changes)})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("script", [{"args": {}}, {"args": [1]}, {"args": [[["a"]]]}, {"args": [{}] * 17}])
async def test_no_units(running: Front, script: Any) -> None:
    answer = await running.http.post(
        "/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, "alwayson_scripts": {"controlnet": script}}
    )
    assert answer.status_code == 422, answer.text
