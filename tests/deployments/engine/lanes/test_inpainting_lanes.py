"""Lanes with a mask among lanes without: nobody's bits change, and nobody else is disturbed by a bad one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from deployments.engine.engine import Engine
from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from deployments.engine.vae.autoencoder import Vae
from tests.deployments.engine.listening import Listener, ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

Y, X = np.mgrid[0:64, 0:64]
PICTURE = np.stack([X * 4, Y * 4, X + Y], axis=-1).astype(np.uint8)
MASK = ((X > 20) & (Y > 12)).astype(np.uint8) * 255


@pytest.mark.parametrize("mask", [None, MASK])
def test_within_a_bucket_the_bits_do_not_depend_on_the_neighbours(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, mask: np.ndarray | None
) -> None:
    engine = make_engine(max_rows=16, reproducible_rows=8)
    text = encode_sd15("a red circle")
    request = ask("judged", reproducible=True, sampler="unipc", image=PICTURE, mask=mask, strength=0.8)
    neighbours = [
        (
            ask(
                f"n{n}",
                seed=n,
                reproducible=True,
                sampler=sampler,
                steps=4 + n,
                image=PICTURE,
                mask=other,
                strength=0.9,
            ),
            encode_sd15(f"neighbour {n}"),
        )
        for n, (sampler, other) in enumerate([("ddim", 255 - MASK), ("euler_a", None), ("unipc", MASK)])
    ]
    (alone,) = run_together(engine, [(request, text)])
    for beside in (neighbours, neighbours[:1], neighbours[1:2]):
        among = run_together(engine, [*beside, (request, text)])[-1]
        assert among.image is not None
        assert alone.image is not None
        assert among.image.tobytes() == alone.image.tobytes()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mask": MASK}, "mask"),
        ({"mask": MASK[:32], "image": PICTURE}, "mask"),
        ({"mask": MASK.astype(np.float32), "image": PICTURE}, "mask"),
        ({"image": PICTURE[:32]}, "image"),
        ({"image": PICTURE, "strength": 0.01}, "strength"),
        ({"image": PICTURE, "strength": 0.0}, "strength"),
        ({"image": PICTURE, "strength": 1.5}, "strength"),
    ],
)
def test_what_cannot_be_fails_alone(
    make_engine: MakeEngine, encode_sd15: Encode, changes: dict[str, Any], field: str
) -> None:
    engine = make_engine()
    text = encode_sd15("x")
    bad, good = Listener(), Listener()
    engine.submit(ask("good", steps=3, image=PICTURE, mask=MASK), text, good)
    engine.submit(ask("bad", **changes), text, bad)
    error = bad.outcome()
    assert isinstance(error, InvalidRequest)
    assert error.field == field
    assert isinstance(good.outcome(), DenoiseResult)


def test_a_kept_region_is_the_image_and_the_rest_is_new(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    engine = make_engine()
    request = ask(image=PICTURE, mask=MASK, output="latents")
    one, other = run_together(
        engine, [(request, encode_sd15("x")), (dataclasses.replace(request, lane_id="2", steps=9), encode_sd15("y"))]
    )
    assert one.latents is not None
    assert other.latents is not None
    kept = MASK[::8, ::8] < 128
    assert (one.latents[:, kept] == other.latents[:, kept]).all()
    assert (one.latents[:, ~kept] != other.latents[:, ~kept]).all()


def test_an_image_that_is_remembered_gives_the_same_latents(sd15_pipeline: StableDiffusionPipeline) -> None:
    def latents(encoder: Vae, image: np.ndarray, without: np.ndarray | None = None) -> torch.Tensor:
        return encoder.encode(image, torch.Generator().manual_seed(1), without)

    encoder = Vae(sd15_pipeline.vae)
    pictures = [PICTURE + np.uint8(n) for n in range(12)]
    with torch.no_grad():
        for _ in range(2):
            for picture in pictures:
                fresh = Vae(sd15_pipeline.vae)
                assert torch.equal(latents(encoder, picture), latents(fresh, picture))
                assert torch.equal(latents(encoder, picture, MASK), latents(fresh, picture, MASK))
        assert not torch.equal(latents(encoder, PICTURE), latents(encoder, PICTURE, MASK))
        assert not torch.equal(latents(encoder, PICTURE, MASK), latents(encoder, PICTURE, 255 - MASK))
