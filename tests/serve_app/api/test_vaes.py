"""A request with a VAE in place of its model's: what its lanes get, what is said of it, and what is refused."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.engine.types import DenoiseRequest
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.images.pictures import gradient, sent

SMALL = {"width": 128, "height": 128, "steps": 10, "seed": 2}
IMAGE = sent(gradient(128, 128))
CONFIG = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 8, 8, 8]}


def tensors(channels: int = 4) -> dict[str, np.ndarray]:
    """The ends of a VAE; the front reads no more."""
    shapes = {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, channels, 3, 3)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "vaes"
    (made / "xl").mkdir(parents=True)
    (made / "xl" / "config.json").write_text(json.dumps(CONFIG | {"scaling_factor": 0.13025}))
    save_file(tensors(), made / "xl" / "diffusion_pytorch_model.safetensors")
    save_file(tensors(), made / "vae-ft-mse.safetensors")
    save_file(tensors(16), made / "flux.safetensors")
    (made / "old.pt").write_bytes(b"\x80\x02")
    return made


@pytest.fixture
async def running(raw_settings: dict[str, Any], stages: Stages, folder: Path) -> AsyncIterator[Front]:
    raw_settings["vaes"] = {"folder": str(folder)}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


async def lanes_of(stages: Stages, job_id: str, stage: str = "sd15") -> list[DenoiseRequest]:
    lanes: list[DenoiseRequest] = await stages.denoisers[stage].lanes_asked.remote()
    return [lane for lane in lanes if lane.lane_id.startswith(job_id)]


async def vae_in_manifest(running: Front) -> Any:
    """Of the newest job's image."""
    job = await running.newest()
    return job.result["images"][0]["manifest"]["vae"]  # type: ignore[index]


async def test_every_pass_gets_it_and_the_manifest_tells(running: Front, stages: Stages) -> None:
    for fields in ({}, {"image": IMAGE}, {"hires": {"scale": 2.0}}):
        answer = await running.generate(**SMALL, vae="vae-ft-mse", **fields)
        assert answer.json()["status"] == "complete", answer.text
        lanes = await lanes_of(stages, answer.json()["job_id"])
        assert [lane.vae for lane in lanes] == ["vae-ft-mse"] * (2 if "hires" in fields else 1)
        assert await vae_in_manifest(running) == {"name": "vae-ft-mse", "hash": "7" * 64}
    answer = await running.generate(**SMALL, vae="xl", model="demo-sdxl", refiner={"switch_at": 0.5})
    assert answer.json()["status"] == "complete", answer.text
    (refined,) = await lanes_of(stages, answer.json()["job_id"], "sdxl_refiner")
    assert refined.vae == "xl"
    await running.generate(**SMALL)
    assert await vae_in_manifest(running) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vae": "nothing"}, "no VAE named 'nothing'"),
        ({"vae": "../vaes/vae-ft-mse"}, "no VAE named"),
        ({"vae": "flux"}, "expected 4 latent channels, found 16"),
        ({"vae": "old"}, "a pickle can run code"),
        ({"vae": "xl"}, "VAE 'xl' is for sdxl and sdxl-refiner models, not for sd15"),
        ({"vae": ""}, "at least 1 character"),
        (
            {"vae": "vae-ft-mse", "hires": {"scale": 2.0, "upscaler": "lanczos", "model": "demo-sdxl"}},
            "vae is of both passes",
        ),
    ],
)
async def test_what_cant_be_used_is_refused(running: Front, fields: dict[str, Any], message: str) -> None:
    answer = await running.generate(**SMALL, **fields)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["field"], message in error["message"]) == ("vae", True), error


async def test_the_lists(running: Front) -> None:
    models = (await running.http.get("/models")).json()
    assert models["vaes"] == ["vae-ft-mse", "xl"]
    assert models["skipped"]["vaes"].keys() == {"flux", "old"}
    listed = (await running.http.get("/sdapi/v1/sd-vae")).json()
    assert listed == [{"model_name": name, "filename": name} for name in ("vae-ft-mse", "xl")]


async def test_a1111s_options_choose_it_for_a_request_and_for_a_caller(running: Front, stages: Stages) -> None:
    async def drawn(**override: str) -> tuple[str | None, dict[str, Any]]:
        body = {"prompt": "x", "width": 128, "height": 128, "seed": 2, "override_settings": override}
        answer = await running.http.post("/sdapi/v1/txt2img", json=body)
        assert answer.status_code == 200, answer.text
        (lane,) = await lanes_of(stages, (await running.newest()).id)
        return lane.vae, json.loads(answer.json()["info"])

    chosen, info = await drawn(sd_vae="VAE-ft-mse.safetensors")
    assert chosen == "vae-ft-mse"
    assert (info["sd_vae_name"], info["sd_vae_hash"]) == ("vae-ft-mse", "7" * 10)
    assert "VAE hash: 7777777777, VAE: vae-ft-mse," in info["infotexts"][0]
    for own in ("Automatic", "None", ""):
        assert (await drawn(sd_vae=own))[0] is None
    assert (await drawn())[0] is None
    await running.http.post("/sdapi/v1/options", json={"sd_vae": "vae-ft-mse.safetensors"})
    assert (await running.http.get("/sdapi/v1/options")).json()["sd_vae"] == "vae-ft-mse.safetensors"
    assert (await drawn())[0] == "vae-ft-mse"
    assert (await drawn(sd_vae="None"))[0] is None
    await running.http.post("/sdapi/v1/options", json={"sd_vae": "Automatic"})
    assert (await drawn())[0] is None
    again = await running.http.post("/sdapi/v1/txt2img", json={"infotext": info["infotexts"][0]})
    assert again.status_code == 200, again.text
    (lane,) = await lanes_of(stages, (await running.newest()).id)
    assert lane.vae == "vae-ft-mse"
