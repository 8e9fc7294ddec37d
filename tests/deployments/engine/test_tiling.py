"""Tiling against diffusers' pipeline with circular convolutions, which is what A1111 makes of its models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from torch.nn import Conv2d
from torch.nn.functional import conv2d

from deployments.engine.engine import Engine
from deployments.engine.tiling import padded_for, seamless
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult
from tests.deployments.engine.listening import ask

Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]
RunTogether = Callable[[Engine, list[tuple[DenoiseRequest, Conditioning]]], list[DenoiseResult]]

Y, X = np.mgrid[0:64, 0:64]
PICTURE = np.stack([X * 4, Y * 4, X + Y], axis=-1).astype(np.uint8)


def circular_pipeline(source: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        source, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for layer in (*pipeline.unet.modules(), *pipeline.vae.modules()):
        if isinstance(layer, Conv2d):
            layer.padding_mode = "circular"
    return pipeline


def test_a_tile_is_the_circular_pipeline_s_picture_and_others_are_as_they_were(
    make_engine: MakeEngine, run_together: RunTogether, encode_sd15: Encode, tiny_sd15: Path
) -> None:
    engine, text = make_engine(), encode_sd15("x")
    plain = ask("plain")
    drawn_over = ask("over", image=PICTURE, strength=0.5, steps=10, tiling=True)
    asked = [(plain, text), (replace(plain, lane_id="tile", tiling=True), text), (drawn_over, text)]
    untiled, tile, over = (result.image for result in run_together(engine, asked))
    pipeline = circular_pipeline(tiny_sd15)
    fields = {"prompt": "x", "guidance_scale": 5.0, "output_type": "np"}
    wanted = pipeline(
        **fields, num_inference_steps=6, width=64, height=64, generator=torch.Generator().manual_seed(7)
    ).images[0]
    assert tile is not None
    assert np.abs(tile - wanted * 255).max() <= 1
    again = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    wanted = again(
        **fields, image=Image.fromarray(PICTURE), strength=0.5, num_inference_steps=10, generator=generator
    ).images[0]
    assert over is not None
    assert np.abs(over - wanted * 255).max() <= 1
    [alone] = run_together(make_engine(), [(plain, text)])
    assert untiled is not None
    assert alone.image is not None
    assert (untiled == alone.image).all()
    assert (untiled != tile).any()


def test_a_lora_s_convolution_wraps_around_with_its_layer() -> None:
    layer = Conv2d(2, 3, 3, padding=(1, 1), bias=False)
    states = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for on in (True, False):
            with seamless(layer, on):
                shown, padding = padded_for(layer, states)
                assert torch.allclose(conv2d(shown, layer.weight, None, 1, padding), layer(states), atol=1e-6)
    assert layer.padding_mode == "zeros"
