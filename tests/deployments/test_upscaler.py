"""The upscaler as a Serve deployment: tiles that share batches and leave no seams, whatever the picture's size."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from deployments.config import UpscalerStageSettings
from deployments.engine.checkpoints.files import hash_files
from deployments.engine.config import DeviceSettings, UpscalerSettings
from deployments.engine.types import Pixels, TilesDone, UpscaleEvent, UpscaleRequest, UpscaleResult
from deployments.upscaler import Upscaler
from tests.ray_cluster import RayCluster
from tests.upscalers import tiny_compact, tiny_esrgan, write

pytestmark = pytest.mark.ray

APP = "upscaler"

# the compact one looks at 4 pixels around each, the others at some thirty
MODELS = {
    "compact": tiny_compact(1, scale=2),
    "esrgan": tiny_esrgan(2),
    "shuffled": tiny_esrgan(3, scale=2, shuffle=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("upscalers")
    for name, model in MODELS.items():
        write(made / f"{name}.safetensors", model)
    return made


@pytest.fixture(scope="module")
def handle(ray_serve: RayCluster, folder: Path) -> Iterator[DeploymentHandle]:
    settings = UpscalerStageSettings(device=DeviceSettings(cpu_threads=1), max_batch=3, at_once=2)
    deployment = serve.deployment(Upscaler).options(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=64)
    application = deployment.bind(settings, UpscalerSettings(folder=str(folder), tile=96, overlap=36))
    yield serve.run(application, name=APP, route_prefix=None)
    serve.delete(APP)


def picture(height: int, width: int) -> Pixels:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def whole(name: str, pixels: Pixels) -> Pixels:
    """What the model makes of the picture in one piece."""
    with torch.no_grad():
        made = MODELS[name](torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    return (made[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


async def upscale(
    handle: DeploymentHandle, name: str, pixels: Pixels, size: tuple[int, int] | None = None
) -> list[UpscaleEvent]:
    """size: width and height; None for the model's own."""
    scale = 4 if name == "esrgan" else 2
    width, height = size or (pixels.shape[1] * scale, pixels.shape[0] * scale)
    stream = handle.options(method_name="upscale", stream=True).remote(UpscaleRequest(name, pixels, width, height))
    return [event async for event in stream]


@pytest.mark.parametrize("name", MODELS)
async def test_tiles_make_what_the_whole_picture_would(handle: DeploymentHandle, folder: Path, name: str) -> None:
    pixels = picture(100, 148)
    *progress, result = await upscale(handle, name, pixels)
    assert isinstance(result, UpscaleResult)
    assert np.abs(result.image.astype(int) - whole(name, pixels)).max() <= 1
    assert all(isinstance(event, TilesDone) for event in progress)
    last = progress[-1]
    assert isinstance(last, TilesDone)
    assert (last.done, last.tiles) == (8, 8)
    assert 0 < last.device_s <= result.device_s
    assert result.upscaler_hash == hash_files([folder / f"{name}.safetensors"])
    assert (result.device, result.dtype) == ("cpu", "float32")


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (50, 50), (97, 99)])
async def test_any_size(handle: DeploymentHandle, size: tuple[int, int]) -> None:
    pixels = picture(*size)
    for name in ("compact", "shuffled"):
        result = (await upscale(handle, name, pixels))[-1]
        assert isinstance(result, UpscaleResult)
        assert result.image.shape == (2 * size[0], 2 * size[1], 3)


async def test_to_the_size_that_was_asked_for(handle: DeploymentHandle) -> None:
    pixels = picture(40, 60)
    result = (await upscale(handle, "compact", pixels, (90, 60)))[-1]
    assert isinstance(result, UpscaleResult)
    expected = np.asarray(Image.fromarray(whole("compact", pixels)).resize((90, 60), Image.Resampling.LANCZOS))
    assert np.abs(result.image.astype(int) - expected).max() <= 1


async def test_pictures_that_share_batches_get_each_its_own(handle: DeploymentHandle) -> None:
    asked = [("compact", picture(90 + 10 * number, 120)) for number in range(5)] + [("shuffled", picture(60, 60))]
    answers = await asyncio.gather(*(upscale(handle, name, pixels) for name, pixels in asked))
    for (name, pixels), answer in zip(asked, answers, strict=True):
        assert isinstance(answer[-1], UpscaleResult)
        assert np.abs(answer[-1].image.astype(int) - whole(name, pixels)).max() <= 1


async def test_what_is_refused_there(handle: DeploymentHandle) -> None:
    with pytest.raises(RayTaskError, match="no upscaler named 'nothing'"):
        await upscale(handle, "nothing", picture(8, 8))
    assert isinstance((await upscale(handle, "compact", picture(8, 8)))[-1], UpscaleResult)


def test_describes_itself(handle: DeploymentHandle) -> None:
    description = handle.describe.remote().result()
    assert (description.name, description.device, description.claim) == ("Upscaler", "cpu", 0)
    assert set(description.checkpoints) <= set(MODELS)
