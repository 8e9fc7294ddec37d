"""`darkroom generate` against a service: the files it leaves, what it says of what goes wrong, and how it is left."""

import asyncio
import io
import json
import signal
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serve_app.cli.command_line import COMMAND, ROOT, darkroom_beside, document
from tests.serve_app.front import Front, until


def image_in(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


async def test_an_image_in_a_file(running: Front, url: str, tmp_path: Path) -> None:
    path = tmp_path / "circle.png"
    result = await darkroom_beside("generate", "a red circle", "-o", path, "--seed", 4, "--url", url)
    assert (result.exit_code, result.stdout) == (0, f"{path}  seed 4\n")
    assert image_in(path).getpixel((0, 0)) == (4, 4, 4)
    assert json.loads(image_in(path).info["darkroom"])["prompt"] == "a red circle"


async def test_every_option_reaches_the_service(running: Front, url: str, tmp_path: Path) -> None:
    options = ["--negative", "blur", "--model", "demo-sdxl", "-n", 2, "--seed", 6, "--steps", 12, "--guidance", 2.5]
    options += ["--width", 128, "--height", 136, "--sampler", "DDIM", "--no-refiner", "--reproducible"]
    options += ["--priority", "batch", "--safety", "block", "--timeout", 90, "--wait", 60]
    options += ["--prompt-2", "a ring", "--negative-2", "noise", "--clip-skip", 1]
    result = await darkroom_beside("generate", "a circle", "-o", tmp_path / "x.webp", *options, DARKROOM_URL=url)
    assert result.exit_code == 0, result.output
    asked = (await running.newest()).request
    expected: dict[str, Any] = {
        "prompt": "a circle", "negative_prompt": "blur", "model": "demo-sdxl", "n": 2, "seed": 6, "steps": 12,
        "guidance_scale": 2.5, "width": 128, "height": 136, "sampler": "ddim", "refiner": None, "switch_at": None,
        "output_format": "webp", "reproducible": True, "priority": "batch", "timeout_s": 90.0, "safety": "block",
        "preview": False, "prompt_2": "a ring", "negative_prompt_2": "noise", "clip_skip": 1, "image": None,
        "guidance_rescale": 0.0, "guidance_start": 0.0, "guidance_end": 1.0, "hires": None, "loras": [],
        "controlnets": [], "references": [], "regions": [], "base_weight": 0.0, "details": [],
        "eta": None, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": None, "s_noise": 1.0,
        "variation_seed": 0, "variation_strength": 0.0, "noise_width": 0, "noise_height": 0, "noise_seed_delta": 0,
        "tiling": False, "freeu_s1": 1.0, "freeu_s2": 1.0, "freeu_b1": 1.0, "freeu_b2": 1.0, "vae": None,
        "ingredients": 0, "pinned": {},
    }  # fmt: skip
    assert asked == expected


async def test_an_image_to_begin_with_reaches_the_service(running: Front, url: str, tmp_path: Path) -> None:
    for name, picture in (("from", Image.new("RGB", (128, 128), "red")), ("mask", Image.new("L", (128, 128), 255))):
        picture.save(tmp_path / f"{name}.png")
    options = ["--image", tmp_path / "from.png", "--mask", tmp_path / "mask.png", "--strength", 0.5, "--steps", 10]
    result = await darkroom_beside("generate", "a ring", "-o", tmp_path / "x.png", "--seed", 2, *options, "--url", url)
    assert result.exit_code == 0, result.output
    asked = (await running.newest()).request
    assert (asked["width"], asked["height"]) == (128, 128)
    assert (asked["image"]["strength"], asked["image"]["masked"]) == (0.5, True)


async def test_the_options_of_a_picture_s_surroundings_and_of_a_second_pass_reach_it(
    running: Front, url: str, tmp_path: Path
) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "from.png")
    Image.new("L", (128, 128), 255).save(tmp_path / "mask.png")
    common = ["-o", tmp_path / "x.png", "--overwrite", "--seed", 2, "--steps", 20, "--url", url]
    begun = ["--image", tmp_path / "from.png", "--mask", tmp_path / "mask.png", "--mask-blur", 3, "--only-masked"]
    result = await darkroom_beside("generate", "a ring", *common, *begun, "--width", 128, "--height", 128)
    assert result.exit_code == 0, result.output
    asked = (await running.newest()).request["image"]
    assert (asked["blur"], asked["only_masked"]) == (3, True)
    result = await darkroom_beside("generate", "a ring", *common, *begun[:2], "--outpaint", "0,8,64,0")
    assert result.exit_code == 0, result.output
    assert (await running.newest()).request["image"]["outpaint"] == [0, 8, 64, 0]
    second = ["--hires", 1.5, "--hires-strength", 0.5, "--hires-upscaler", "lanczos"]
    second += ["--guidance-rescale", 0.3]
    result = await darkroom_beside("generate", "a ring", *common, *second)
    assert result.exit_code == 0, result.output
    asked = (await running.newest()).request
    assert (asked["hires"]["width"], asked["hires"]["strength"], asked["hires"]["upscaler"]) == (384, 0.5, "lanczos")
    assert asked["guidance_rescale"] == 0.3


@pytest.mark.parametrize(
    "options", [["--lora", "a:much"], ["--detail", "a:much"], ["--outpaint", "8"], ["--outpaint", "1,2,3,x"]]
)
async def test_an_option_that_cannot_be_read_is_wrong_usage(tmp_path: Path, options: list[str]) -> None:
    result = await darkroom_beside("generate", "x", "-o", tmp_path / "x.png", *options)
    assert result.exit_code == 2


async def test_an_unknown_lora_is_named(url: str, tmp_path: Path) -> None:
    arguments = ["generate", "x", "-o", tmp_path / "x.png", "--lora", "none:0.5", "--url", url, "--json"]
    assert document(await darkroom_beside(*arguments))["error"]["code"] == "lora_refused"


async def test_a_detail_reaches_the_service(url: str, tmp_path: Path) -> None:
    asked = ["generate", "x", "-o", tmp_path / "x.png", "--url", url, "--detail", "faces:0.3=a face: smiling"]
    refused = await darkroom_beside(*asked)
    assert (refused.exit_code, "details aren't supported here" in refused.stderr) == (1, True)


async def test_a_controlnet_and_its_picture_reach_the_service(url: str, tmp_path: Path) -> None:
    picture, control = tmp_path / "a=b.png", ["generate", "a ring", "-o", tmp_path / "x.png", "--url", url, "--control"]
    Image.new("RGB", (128, 128), "red").save(picture)
    refused = await darkroom_beside(*control, f"edges:canny={picture}")
    assert (refused.exit_code, "no ControlNet named 'edges'" in refused.stderr) == (1, True)
    refused = await darkroom_beside(*control, f"edges:depth={picture}")
    assert "controlnets.0.preprocessor is 'depth'" in refused.stderr
    for wrong in ("edges", f"edges={tmp_path}/nothing.png"):
        refused = await darkroom_beside(*control, wrong)
        assert (refused.exit_code, "expected MODEL=FILE" in refused.stderr) == (2, True)


async def test_a_reference_and_its_picture_reach_the_service(url: str, tmp_path: Path) -> None:
    picture, shown = tmp_path / "a=b.png", ["generate", "a ring", "-o", tmp_path / "x.png", "--url", url, "--reference"]
    Image.new("RGB", (128, 128), "red").save(picture)
    refused = await darkroom_beside(*shown, f"scene:0.6={picture}")
    assert (refused.exit_code, "no IP-Adapter named 'scene'" in refused.stderr) == (1, True)
    refused = await darkroom_beside(*shown, f"scene:11={picture}")
    assert "references.0.scale is 11" in refused.stderr
    for wrong, why in (("scene", "expected MODEL=FILE"), (f"scene:much={picture}", "isn't a number")):
        refused = await darkroom_beside(*shown, wrong)
        assert (refused.exit_code, why in refused.stderr) == (2, True)


async def test_images_of_one_request_are_told_apart_by_their_seeds(url: str, tmp_path: Path) -> None:
    arguments = ["generate", "circles", "-o", tmp_path / "circle.jpg", "-n", 3, "--seed", 4, "--json", "--url", url]
    result = await darkroom_beside(*arguments)
    assert result.exit_code == 0
    job = document(result)
    assert job["status"] == "complete"
    # the classifier of these stages withholds odd seeds
    files = [image["file"] for image in job["images"]]
    assert files == [str(tmp_path / "circle-4.jpg"), None, str(tmp_path / "circle-6.jpg")]
    assert image_in(tmp_path / "circle-4.jpg").format == "JPEG"
    assert "seed 5 was withheld as unsafe" in result.stderr


async def test_a_blocked_image(url: str, tmp_path: Path) -> None:
    arguments = ["generate", "a circle", "-o", tmp_path / "x.png", "--seed", 5, "--url", url]
    result = await darkroom_beside(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: blocked: every image of this job was withheld as unsafe\n"
    assert not (tmp_path / "x.png").exists()
    assert document(await darkroom_beside(*arguments, "--json"))["error"]["code"] == "blocked"


@pytest.mark.parametrize(
    ("options", "code", "field", "message"),
    [
        (["--steps", 500], "invalid_request", "steps", "error: 422: steps is 500, outside 10..50\n"),
        (["--model", "none"], "unknown_model", "model", "`darkroom models list` shows the models"),
        (["--sampler", "magic"], "unknown_sampler", "scheduler", "magic"),
        (["--seed", -1], "invalid_request", "seed", "seed"),
    ],
)
async def test_a_refused_field_is_named(
    running: Front, url: str, tmp_path: Path, options: list[object], code: str, field: str, message: str
) -> None:
    arguments = ["generate", "a circle", "-o", tmp_path / "x.png", *options, "--url", url, "--json"]
    result = await darkroom_beside(*arguments)
    assert result.exit_code == 1
    assert (document(result)["error"]["code"], document(result)["error"]["field"]) == (code, field)
    assert message in result.stderr
    body = {name.strip("-"): value for name, value in [options]} | {"prompt": "a circle"}
    body["scheduler"] = body.pop("sampler", None)
    assert document(result) == (await running.http.post("/generate", json=body)).json()


async def test_a_job_that_fails(url: str, tmp_path: Path) -> None:
    result = await darkroom_beside("generate", "poison", "-o", tmp_path / "x.png", "--url", url, "--json")
    assert result.exit_code == 1
    assert document(result)["status"] == "failed"
    assert result.stderr.startswith("error: numerical_failure: ")


async def test_a_job_that_runs_out_of_its_time(url: str, tmp_path: Path) -> None:
    result = await darkroom_beside("generate", "endless", "-o", tmp_path / "x.png", "--timeout", 0.2, "--url", url)
    assert result.exit_code == 1
    assert "error: deadline_exceeded: " in result.stderr


async def test_a_wait_that_times_out_leaves_the_job(running: Front, url: str, tmp_path: Path) -> None:
    arguments = ["generate", "endless", "-o", tmp_path / "x.png", "--wait", 0.3, "--url", url, "--json"]
    result = await darkroom_beside(*arguments)
    job = await running.newest()
    assert (result.exit_code, document(result)["job_id"]) == (1, job.id)
    assert document(result)["error"]["code"] == "wait_timed_out"
    short = job.id[-8:]
    assert f"job {short} isn't done after 0.3 s and continues; `darkroom wait {short}`" in result.stderr
    assert not job.state.terminal


async def test_a_job_that_somebody_else_cancels(running: Front, url: str, tmp_path: Path) -> None:
    drawing = asyncio.create_task(darkroom_beside("generate", "endless", "-o", tmp_path / "x.png", "--url", url))
    await until(lambda: sum(running.service.runner.depth()) == 1)
    await running.service.cancel((await running.newest()).id)
    result = await drawing
    assert (result.exit_code, result.stderr) == (1, "error: the job was cancelled\n")


async def test_interrupting_cancels_the_job(running: Front, url: str, tmp_path: Path) -> None:
    arguments = ["generate", "endless", "-o", str(tmp_path / "x.png"), "--url", url]
    drawing = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
        # as in a terminal: what a script starts with & inherits that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    await until(lambda: sum(running.service.runner.depth()) == 1, timeout_s=60)
    drawing.send_signal(signal.SIGINT)
    stdout, stderr = await drawing.communicate()
    assert (drawing.returncode, stdout) == (130, b"")
    assert stderr.decode() == f"job {(await running.newest()).id[-8:]} is cancelled\ninterrupted\n"
    await running.cancelled()


async def test_texts_with_what_python_calls_ends_of_lines(running: Front, url: str, tmp_path: Path) -> None:
    prompt = "a circle\u2028and\x85a square\x1c\n\nslow"
    result = await darkroom_beside("generate", prompt, "-o", tmp_path / "x.png", "--seed", 2, "--url", url, "--json")
    assert result.exit_code == 0, result.output
    assert document(result)["request"]["prompt"] == prompt


async def test_a_file_that_can_not_be_written(url: str, tmp_path: Path) -> None:
    (tmp_path / "taken-4.png").mkdir()
    arguments = ["generate", "a circle", "-o", tmp_path / "taken.png", "-n", 2, "--seed", 4, "--url", url]
    result = await darkroom_beside(*arguments)
    assert result.exit_code == 1
    assert "taken-4.png" in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_file_that_exists_stays_unless_told(running: Front, url: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("mine")
    arguments = ["generate", "a circle", "-o", path, "--seed", 4, "--url", url]
    refused = await darkroom_beside(*arguments, COLUMNS="200")
    assert (refused.exit_code, path.read_text()) == (2, "mine")
    assert "exists already" in refused.stderr
    assert (await running.service.store.page(tenant=None, limit=1)).jobs == ()
    assert (await darkroom_beside(*arguments, "--overwrite")).exit_code == 0
    assert image_in(path).size == (256, 256)


async def test_a_file_of_several_that_exists_stays_and_its_image_can_be_fetched(
    running: Front, url: str, tmp_path: Path
) -> None:
    (tmp_path / "x-4.png").write_text("mine")
    arguments = ["generate", "a circle", "-o", tmp_path / "x.png", "--seed", 4, "-n", 2, "--url", url, "--json"]
    refused = await darkroom_beside(*arguments)
    job = await running.newest()
    assert (refused.exit_code, (tmp_path / "x-4.png").read_text()) == (1, "mine")
    assert document(refused) == {
        "error": {
            "code": "not_written",
            "message": f"{tmp_path / 'x-4.png'} exists already: give another file, or --overwrite (the service has "
            f"the image: `darkroom result {job.id[-8:]}` fetches it)",
        },
        "job_id": job.id,
    }


async def test_without_a_name_the_job_s_is_the_file_s(
    running: Front, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = await darkroom_beside("generate", "a circle", "--seed", 4, "--url", url)
    name = f"darkroom-{(await running.newest()).id[-8:]}.png"
    assert (result.exit_code, result.stdout) == (0, f"{name}  seed 4\n")
    assert image_in(tmp_path / name).size == (256, 256)
    result = await darkroom_beside("generate", "circles", "--seed", 4, "-n", 3, "--url", url)
    name = f"darkroom-{(await running.newest()).id[-8:]}"
    assert result.stdout.split() == [f"{name}-4.png", "seed", "4", f"{name}-6.png", "seed", "6"]


async def test_an_image_on_stdout(url: str) -> None:
    result = await darkroom_beside("generate", "a circle", "-o", "-", "--seed", 4, "--url", url)
    assert (result.exit_code, result.stderr) == (0, "-  seed 4\n")
    assert Image.open(io.BytesIO(result.stdout_bytes)).size == (256, 256)
    for conflict in (["-n", 2], ["--json"]):
        refused = await darkroom_beside("generate", "a circle", "-o", "-", *conflict, "--url", url, COLUMNS="200")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "one image on stdout" in refused.stderr
