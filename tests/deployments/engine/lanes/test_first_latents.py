"""What an image begins with: A1111's noise of two seeds and of another size, long seeds, what a mask hides."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from deployments.engine.engine import Engine
from deployments.engine.lanes.first_latents import _first_noise, generator_for, seed_bits
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from tests.deployments.engine.listening import ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

Y, X = np.mgrid[0:64, 0:64]
PICTURE = np.stack([X * 4, Y * 4, X + Y], axis=-1).astype(np.uint8)
MASK = ((X > 20) & (Y > 12)).astype(np.uint8) * 255
SHAPE = (4, 8, 8)


def first(request: DenoiseRequest, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return _first_noise(request, shape, generator_for(request.seed)).numpy()


def drawn(seed: int, *shape: int) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).numpy()


def test_a_variation_turns_each_column_towards_the_other_seed_s() -> None:
    """slerp of A1111's rng.py, column by column, as its `norm(dim=1)` of (channels, height, width) means."""
    own, other = drawn(1, *SHAPE), drawn(2, *SHAPE)
    assert (first(ask(seed=1, variation_seed=2)) == own).all()
    wanted = np.empty_like(own)
    for channel in range(4):
        for column in range(8):
            low, high = own[channel, :, column].astype(float), other[channel, :, column].astype(float)
            angle = np.arccos(low @ high / np.linalg.norm(low) / np.linalg.norm(high))
            wanted[channel, :, column] = (np.sin(0.7 * angle) * low + np.sin(0.3 * angle) * high) / np.sin(angle)
    mixed = first(ask(seed=1, variation_seed=2, variation_strength=0.3))
    assert np.abs(mixed - wanted).max() < 1e-5
    assert np.abs(first(ask(seed=1, variation_seed=2, variation_strength=1.0)) - other).max() < 1e-5
    assert np.abs(first(ask(seed=1, variation_seed=1, variation_strength=0.3)) - own).max() < 1e-5


# the middle of A1111's ImageRNG.first: (of another size, where it lies there, which part of it)
@pytest.mark.parametrize(
    ("width", "height", "here", "there"),
    [
        (32, 48, (slice(1, 7), slice(2, 6)), (slice(0, 6), slice(0, 4))),
        (96, 64, (slice(0, 8), slice(0, 8)), (slice(0, 8), slice(2, 10))),
        (88, 40, (slice(1, 6), slice(0, 7)), (slice(0, 5), slice(2, 9))),
    ],
)
def test_noise_of_another_size_is_in_the_middle(
    width: int, height: int, here: tuple[slice, slice], there: tuple[slice, slice]
) -> None:
    wanted = drawn(3, *SHAPE)
    wanted[:, *here] = drawn(3, 4, height // 8, width // 8)[:, *there]
    assert (first(ask(seed=3, noise_width=width, noise_height=height)) == wanted).all()
    assert (first(ask(seed=3, noise_width=64, noise_height=64)) == drawn(3, *SHAPE)).all()


def test_seeds_beyond_32_bits_draw_noise_of_their_own() -> None:
    seeds = [5, 5 + (1 << 32), 5 + (1 << 33), (1 << 63) - 1, -5]
    noises = [torch.randn(8, generator=generator_for(seed)).tolist() for seed in seeds]
    assert len({tuple(noise) for noise in noises}) == len(seeds)
    assert noises[0] == drawn(5, 8).tolist()
    assert all(0 <= seed_bits(seed) < 1 << 32 for seed in seeds)


def test_a_seed_s_delta_is_of_the_noise_that_a_sampler_draws(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    text, engine = encode_sd15("x"), make_engine()
    for sampler, differs in (("webui_euler", False), ("webui_euler_a", True)):
        plain = ask("plain", sampler=sampler, seed=4)
        moved = replace(plain, lane_id="moved", noise_seed_delta=31337)
        one, other = run_together(engine, [(plain, text), (moved, text)])
        assert one.image is not None
        assert other.image is not None
        assert bool(np.abs(one.image.astype(int) - other.image).max() > 1) is differs


def test_what_is_hidden_begins_as_noise_or_nothing(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    """With one step from a low noise the hidden part still shows what it began with."""
    engine, text = make_engine(), encode_sd15("x")
    request = ask(image=PICTURE, mask=MASK, output="latents", sampler="webui_euler", strength=0.0, steps=20)
    contents = ("image", "noise", "nothing")
    asked = [(replace(request, lane_id=content, masked_content=content), text) for content in contents]
    image, noise, nothing = (result.latents for result in run_together(engine, asked))
    assert image is not None
    assert noise is not None
    assert nothing is not None
    hidden = MASK[::8, ::8] >= 128
    assert (image[:, ~hidden] == noise[:, ~hidden]).all()
    sizes = [np.abs(latents[:, hidden]).mean() for latents in (image, noise, nothing)]
    assert sizes[2] < 0.5 * min(sizes[:2])


def test_an_image_of_any_size_has_its_latents_stretched(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode
) -> None:
    engine, text = make_engine(), encode_sd15("x")
    request = ask(image=PICTURE[:48, :32], enlarge="latent", strength=0.5, sampler="webui_euler")
    [result] = run_together(engine, [(request, text)])
    assert result.image is not None
    assert result.image.shape == (request.height, request.width, 3)
