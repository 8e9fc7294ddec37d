"""Pictures that steer a generation, from the request to the files beside the job and back."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
from serve_app.config.settings import Settings
from serve_app.images.decode import read_source
from serve_app.images.steering import NO_PICTURES, SteeringPictures, SteeringSources
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.resolved import ResolvedGeneration
from tests.serve_app.images.pictures import gradient, sent, square

SIDE = 128
PIXELS = 1 << 18


@pytest.fixture
def adapters(tmp_path: Path) -> IpAdapterFolder:
    tensors = {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "base.safetensors")
    return IpAdapterFolder(str(tmp_path))


def resolved(
    request: GenerationRequest, settings: Settings, adapters: IpAdapterFolder
) -> tuple[ResolvedGeneration, list[bytes]]:
    source = None if request.image is None else read_source(request.image, request.mask, PIXELS)
    sources = SteeringSources.read(request, source, adapters, PIXELS)
    generation = resolve(request, settings, drawn_seed=1, source=source, steering=sources).generation
    return generation, sources.stored(request, generation, source)


def test_what_is_stored_is_read_in_order(settings: Settings, adapters: IpAdapterFolder) -> None:
    first, second = gradient(SIDE, SIDE), gradient(96, 80)
    mask = square(SIDE, SIDE, 32, 32, 64)
    request = GenerationRequest.model_validate(
        {
            "prompt": "x",
            "width": SIDE,
            "height": SIDE,
            "controlnets": [
                {"model": "a", "image": sent(first)},
                {"model": "unused", "image": sent(first), "scale": 0},
                {"model": "b", "image": sent(second)},
            ],
            "references": [
                {"model": "base", "image": sent(second)},
                {"model": "base", "image": sent(first), "scale": 0},
                {"model": "base", "image": sent(first), "mask": sent(mask)},
            ],
            "regions": [
                {"prompt": "a star", "box": {"x": 0.5, "y": 0, "width": 0.5, "height": 1}},
                {"prompt": "a ring", "mask": sent(mask), "weight": 0.5},
            ],
        }
    )
    generation, files = resolved(request, settings, adapters)
    assert generation.steering_pictures == len(files) == 6
    pictures = SteeringPictures.read(generation, files)
    assert (pictures.controls[0] == first).all()
    assert pictures.controls[1].shape == (SIDE, SIDE, 3)  # a control picture has the result's shape
    assert (pictures.references[0] == second).all()  # a reference its own
    assert (pictures.references[1] == first).all()
    assert pictures.masks[0] is None
    assert pictures.masks[1] is not None
    assert (pictures.masks[1] == mask).all()
    fields = pictures.of_pass(generation, (2 * SIDE, 2 * SIDE), None)
    assert [control.image.shape for control in fields["controls"]] == [(2 * SIDE, 2 * SIDE, 3)] * 2
    assert [None if one.mask is None else one.mask.shape for one in fields["references"]] == [
        None,
        (2 * SIDE, 2 * SIDE),
    ]
    assert [(one.mask.shape, one.weight) for one in fields["regions"]] == [
        ((2 * SIDE, 2 * SIDE), 1.0),
        ((2 * SIDE, 2 * SIDE), 0.5),
    ]
    assert [one.channels for one in pictures.to_encode(generation)] == [1024, 1024]
    of_refiner = pictures.of_pass(generation, (SIDE, SIDE), None, refines=True)
    assert of_refiner.keys() == {"regions"}
    assert (of_refiner["regions"][1].mask == mask).all()


def test_a_generation_without_any(settings: Settings, adapters: IpAdapterFolder) -> None:
    generation, files = resolved(GenerationRequest(prompt="x"), settings, adapters)
    assert (generation.steering_pictures, files) == (0, [])
    assert SteeringPictures.read(generation, files) == SteeringPictures([], [], [], [])
    assert NO_PICTURES.of_pass(generation, (SIDE, SIDE), None) == {"controls": (), "references": (), "regions": ()}
