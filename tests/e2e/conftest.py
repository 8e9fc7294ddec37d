"""The whole service, once a session: the graph of serve_config.cluster.yaml with its claims, tiny checkpoints, HTTP."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from ray import serve

from serve_app.app import build
from tests.detectors import only_at, tiny_network, write_detector
from tests.e2e.service import STAGES, TINY_DEFAULTS, TINY_LIMITS, Service, cluster_settings
from tests.ip_adapters import write_image_encoder, write_ip_adapter
from tests.ray_cluster import RayCluster
from tests.tiny_checkpoints import PUBLISHED_LAYERS, write_tiny_sd15, write_tiny_sdxl, write_tiny_sdxl_refiner
from tests.vaes import random_vae, write_vaes


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny_sdxl and its refiner with more layers than elsewhere: images last long enough to meet others."""
    return write_tiny_sd15(tmp_path_factory.mktemp("checkpoints") / "tiny-sd15", layers=PUBLISHED_LAYERS)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sdxl(tmp_path_factory.mktemp("checkpoints") / "tiny-sdxl", layers=PUBLISHED_LAYERS)


@pytest.fixture(scope="session")
def tiny_sdxl_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-sdxl-refiner"
    return write_tiny_sdxl_refiner(folder, layers=PUBLISHED_LAYERS)


@pytest.fixture(scope="session")
def tiny_vaes(tiny_sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for tiny-sd15, in place of its own."""
    own: AutoencoderKL = AutoencoderKL.from_pretrained(tiny_sd15 / "vae", dtype=torch.float32)
    return write_vaes(tmp_path_factory.mktemp("vaes"), {"soft": random_vae(own, 12)})


@pytest.fixture(scope="session")
def tiny_detectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that finds something everywhere."""
    folder = tmp_path_factory.mktemp("detectors")
    write_detector(folder / "everywhere.safetensors", only_at(tiny_network(), 4.0))
    return folder


@pytest.fixture(scope="session")
def tiny_models(
    tiny_sd15: Path,
    tiny_sdxl: Path,
    tiny_sdxl_refiner: Path,
    tiny_vaes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Two variants of SD1.5, the first also with another VAE; SDXL with its refiner; and a demo model.

    The demo model's pictures show what was asked for.
    """
    variant = write_tiny_sd15(
        tmp_path_factory.mktemp("checkpoints") / "tiny-sd15-variant", seed=11, layers=PUBLISHED_LAYERS
    )
    requests = {"defaults": TINY_DEFAULTS, "limits": TINY_LIMITS}
    return {
        "tiny-sd15": {"family": "sd15", "source": str(tiny_sd15), **requests},
        "tiny-sd15-variant": {"family": "sd15", "source": str(variant), **requests},
        "tiny-sd15-soft": {"family": "sd15", "source": str(tiny_sd15), "vae": str(tiny_vaes / "soft"), **requests},
        "tiny-sdxl": {"family": "sdxl", "source": str(tiny_sdxl), "refiner": "tiny-sdxl-refiner", **requests},
        "tiny-sdxl-refiner": {"family": "sdxl-refiner", "source": str(tiny_sdxl_refiner)},
        "demo-sd15": {"family": "sd15", "source": "package:demo_models/demo-sd15", **requests},
    }


@pytest.fixture(scope="session")
def tiny_ip_adapters(tiny_sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for tiny-sd15, and its image encoder."""
    folder = tmp_path_factory.mktemp("ip-adapters")
    unet = UNet2DConditionModel.from_pretrained(tiny_sd15 / "unet", dtype=torch.float32)
    write_ip_adapter(folder / "tiny.safetensors", unet)
    write_image_encoder(folder / "image_encoder")
    return folder


@pytest.fixture(scope="session")
def service(
    ray_serve: RayCluster,
    while_ray_runs: ExitStack,
    tiny_models: dict[str, Any],
    tiny_vit: Path,
    tiny_ip_adapters: Path,
    tiny_vaes: Path,
    tiny_detectors: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Service:
    """Every stage is up and every check is green when a test gets it."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copytree(tiny_vaes, folder / "vaes")
    shutil.copytree(tiny_detectors, folder / "detectors")
    settings = cluster_settings(tiny_models, str(tiny_vit), tiny_ip_adapters, folder)
    serve.run(build(settings), name="darkroom", route_prefix="/")
    placed = {
        stage: serve.get_deployment_handle(name, "darkroom").describe.remote().result()
        for stage, name in STAGES.items()
    }
    while_ray_runs.callback(serve.delete, "darkroom")
    return Service(ray_serve.url, "darkroom", settings, folder, placed)
