"""`darkroom generate --local`: real images by the demo checkpoints, without Ray and without a service."""

import asyncio
import io
import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from PIL import Image

from demo_models.drawing import draw as draw_scene
from demo_models.scenes import Scene, SceneObject
from demo_models.scoring import score_image
from serve_app.cli.config import read_settings
from serve_app.cli.local_drawing import draw
from serve_app.config.overlay import merged as merged_files
from serve_app.config.settings import Settings
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from tests.loras import TEXT_LAYERS, UNET_LAYERS, Parts, merged, random_updates, write_kohya
from tests.serve_app.cli.command_line import ROOT, config_with, darkroom, document
from tests.serve_app.images.pictures import file_of, received, square

SMALL = ("--width", 128, "--height", 128, "--steps", 10)


def manifest(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(Image.open(io.BytesIO(path.read_bytes())).info["darkroom"])
    return found


def local(prompt: str, output: Path, *options: object) -> list[object]:
    return ["generate", prompt, "--local", "--config", ROOT / "serve_config.yaml", "-o", output, *SMALL, *options]


def test_draws_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "circle.png"
    arguments = local("a large red circle on a blue background", path, "--seed", 3, "-n", 2, "--reproducible", "--json")
    result = darkroom(*arguments)
    assert result.exit_code == 0, result.output
    job = document(result)
    assert (job["status"], job["error"]) == ("complete", None)
    assert [image["file"] for image in job["images"]] == [str(tmp_path / f"circle-{seed}.png") for seed in (3, 4)]
    for seed in (3, 4):
        image = Image.open(io.BytesIO((tmp_path / f"circle-{seed}.png").read_bytes())).convert("RGB")
        assert image.size == (128, 128)
        red, green, blue = image.getpixel((2, 2))  # type: ignore[misc]
        assert blue > max(red, green) + 50
        assert manifest(tmp_path / f"circle-{seed}.png")["seed"] == seed
    before = (tmp_path / "circle-3.png").read_bytes()
    assert darkroom(*arguments, "--overwrite").exit_code == 0
    assert (tmp_path / "circle-3.png").read_bytes() == before


def test_with_the_refiner(tmp_path: Path) -> None:
    path = tmp_path / "star.png"
    result = darkroom(*local("a green star on a white background", path, "--model", "demo-sdxl", "--seed", 1))
    assert (result.exit_code, result.stdout) == (0, f"{path}  seed 1\n"), result.output
    assert manifest(path)["refiner"] is not None


def test_with_a_clusters_settings_on_the_cpu(tmp_path: Path) -> None:
    config = tmp_path / "laptop.yaml"
    config.write_text(merged_files(ROOT / "serve_config.cluster.yaml", ROOT / "overlay.laptop.yaml"))
    path = tmp_path / "circle.png"
    result = darkroom("generate", "a red circle", "--local", "--config", config, "-o", path, *SMALL)
    assert result.exit_code == 0, result.output
    drawn = manifest(path)
    assert (drawn["device"], drawn["dtype"]) == ("cpu", "float32")


def test_with_an_image_and_a_mask_to_begin_with(tmp_path: Path) -> None:
    y, x = np.mgrid[0:128, 0:128]
    pixels = np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)  # without edges: a grid is what is withheld
    painted = square(128, 128, 32, 32, 64)
    (tmp_path / "from.png").write_bytes(file_of(pixels))
    (tmp_path / "mask.png").write_bytes(file_of(painted))
    path = tmp_path / "x.png"
    begun = ["--image", tmp_path / "from.png", "--mask", tmp_path / "mask.png", "--seed", 3]
    result = darkroom("generate", "a red circle", *local("", path)[2:], *begun, "--lora", "demo-night:0.5")
    assert result.exit_code == 0, result.output
    drawn = received(path.read_bytes())
    assert (drawn[painted == 0] == pixels[painted == 0]).all()
    assert (drawn[painted > 0] != pixels[painted > 0]).any()
    (tmp_path / "mask.png").write_bytes(file_of(painted[:64]))
    refused = darkroom("generate", "a red circle", *local("", path)[2:], *begun, "--overwrite", "--json")
    assert (refused.exit_code, document(refused)["error"]["field"]) == (1, "mask")


def test_edges_decide_on_the_shape(tmp_path: Path) -> None:
    star = Scene("blue", (SceneObject("star", "red", "large"),))
    (tmp_path / "star.png").write_bytes(file_of(draw_scene(star, 256, 256, random.Random(1))))
    asked = ["generate", "red on a blue background", "--local", "--config", ROOT / "serve_config.yaml"]
    asked += ["-o", tmp_path / "x.png", "--overwrite", "--seed", 5, "--width", 256, "--height", 256, "--steps", 20]
    pictures = []
    for steered in ([], ["--control", f"demo-edges:canny={tmp_path / 'star.png'}"]):
        result = darkroom(*asked, *steered)
        assert result.exit_code == 0, result.output
        pictures.append(received((tmp_path / "x.png").read_bytes()))
    assert [score_image(picture, star).exact for picture in pictures] == [False, True]
    [control] = manifest(tmp_path / "x.png")["controlnets"]  # type: ignore[misc, attr-defined]
    assert (control["name"], control["preprocessor"], len(control["hash"])) == ("demo-edges", "canny", 64)


def test_needs_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from serve_app.cli.app import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit('ray' in sys.modules)"
    )
    arguments = map(str, local("a circle", tmp_path / "x.png"))
    assert subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=False).returncode == 0


def test_the_settings_safety_layers_are_asked(tmp_path: Path) -> None:
    path = config_with(
        tmp_path, ("threshold: 0.8", "threshold: 0.0"), ("prompt_patterns: []", "prompt_patterns: [bomb]")
    )
    arguments = ["generate", "a circle", "--local", "--config", path, *SMALL, "-o", tmp_path / "x.png", "--json"]
    blocked = darkroom(*arguments)
    assert blocked.exit_code == 1
    assert (document(blocked)["status"], document(blocked)["error"]["code"]) == ("blocked", "blocked")
    blurred = darkroom(*arguments, "--safety", "blur")
    assert (blurred.exit_code, document(blurred)["error"]["code"]) == (1, "invalid_request")
    refused = darkroom(*["generate", "a bomb", *arguments[2:]])
    assert (refused.exit_code, document(refused)["error"]["code"]) == (1, "prompt_refused")
    assert not (tmp_path / "x.png").exists()


def test_what_is_wrong_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for options, code in (
        (["--steps", 500], "invalid_request"),
        (["--model", "none"], "unknown_model"),
        (["--config", __file__], "invalid_config"),
    ):
        result = darkroom(*local("a circle", path, *options, "--json"))
        assert (result.exit_code, document(result)["error"]["code"]) == (1, code)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    config = config_with(tmp_path, ("source: package:demo_models/demo-sd15\n", "source: package:demo_models/none\n"))
    result = darkroom("generate", "a circle", "--local", "--config", config, "-o", tmp_path / "x.png", "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "checkpoint_error")
    assert "demo_models/none" in result.stderr


async def test_a_cancelled_task_takes_its_images_out() -> None:
    settings = read_settings(ROOT / "serve_config.yaml")
    request = GenerationRequest(prompt="a circle", n=4, steps=50, width=128, height=128)
    stepped = asyncio.Event()

    def watch(what: str, done: int, planned: int) -> None:
        if what == "drawing":
            assert 0 < done < planned == 4 * 50
            stepped.set()

    before = set(threading.enumerate())
    drawing = asyncio.create_task(draw(resolve(request, settings, drawn_seed=1).generation, settings, watch))
    async with asyncio.timeout(60):
        await stepped.wait()
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    assert "engine" not in {thread.name for thread in set(threading.enumerate()) - before}


async def test_a_few_step_model_of_an_ordinary_checkpoint_and_a_lora(tiny_sd15: Path, tmp_path: Path) -> None:
    """As diffusers draws with its weights merged in, UNet and text encoder; the request needn't know."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd15, safety_checker=None, requires_safety_checker=False)
    parts: Parts = {
        "unet": random_updates(pipeline.unet, UNET_LAYERS, seed=1),
        "text_encoder": random_updates(pipeline.text_encoder, TEXT_LAYERS, seed=2),
    }
    write_kohya(tmp_path / "lcm-lora.safetensors", parts)
    sizes = {"min": 64, "max": 64}
    model = {
        "family": "sd15",
        "source": str(tiny_sd15),
        "loras": [{"name": "lcm-lora", "weight": 0.8}],
        "defaults": {"sampler": "lcm", "steps": 4, "guidance_scale": 1.0, "width": 64, "height": 64},
        "limits": {
            "steps": {"min": 1, "max": 8},
            "guidance_scale": {"min": 1, "max": 2},
            "width": sizes,
            "height": sizes,
        },
    }
    settings = Settings.model_validate(
        {
            "models": {"few-step": model},
            "default_model": "few-step",
            "device": "cpu",
            "loras": {"folder": str(tmp_path)},
            "safety": {"mode": "off", "classifier": None},
        }
    )
    generation = resolve(GenerationRequest(prompt="a red cat", seed=5), settings, drawn_seed=1).generation
    [image] = await draw(generation, settings, lambda *_: None)
    assert [(one.name, one.weight, len(one.hash)) for one in image.manifest.loras] == [("lcm-lora", 0.8, 64)]
    assert image.data is not None

    def expected() -> Any:
        for name, updates in parts.items():
            setattr(pipeline, name, merged(getattr(pipeline, name), (updates, 0.8)))
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0, "generator": generator}
        return np.array(pipeline("a red cat", height=64, width=64, **options).images[0])

    difference = np.abs(received(image.data).astype(int) - await asyncio.to_thread(expected))
    assert difference.max() <= 1  # of rounding to 8 bits
