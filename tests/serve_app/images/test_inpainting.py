"""Canvases and regions: what isn't masked comes back to the byte, whatever is done with the rest."""

from typing import Any

import numpy as np
import pytest

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import DenoiseResult, StageTimings
from serve_app.images.decode import Source, read_source
from serve_app.images.inpainting import Canvas, canvas_of, frame_of, second_pass_image
from serve_app.schemas.resolved import HiresInput, ImageInput
from tests.serve_app.images.pictures import gradient, sent, square

PAINT = (1, 2, 3)


def source(pixels: np.ndarray, mask: np.ndarray | None = None) -> Source:
    return read_source(sent(pixels), None if mask is None else sent(mask), 1 << 20)


def asked(**fields: Any) -> ImageInput:
    return ImageInput(sha256="0" * 64, strength=1.0, **fields)


def painted(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), PAINT, np.uint8)


def through_the_store(canvas: Canvas) -> Canvas:
    again = Canvas.from_png(canvas.to_png())
    assert (again.pixels == canvas.pixels).all()
    assert (again.mask is None) == (canvas.mask is None)
    assert again.mask is None or (again.mask == canvas.mask).all()
    return again


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask's pixels, and all that are so near to one."""
    wider = mask.copy()
    for y, x in np.argwhere(mask):
        wider[max(0, y - by) : y + by + 1, max(0, x - by) : x + by + 1] = True
    return wider


def test_without_a_mask_all_is_drawn() -> None:
    canvas = through_the_store(canvas_of(source(gradient(64, 40)), asked(), 64, 40))
    frame = frame_of(canvas, asked(), 64, 40)
    assert (frame.image == gradient(64, 40)).all()
    assert frame.mask is None
    assert (frame.composed(painted(64, 40)) == PAINT).all()


def test_a_picture_is_scaled_to_the_size_that_is_asked_for() -> None:
    canvas = canvas_of(source(gradient(64, 40), square(64, 40, 0, 0, 20)), asked(masked=True), 128, 80)
    assert canvas.pixels.shape == (80, 128, 3)
    assert canvas.mask is not None
    assert canvas.mask.shape == (80, 128)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("blur", [0, 2])
def test_what_is_not_masked_comes_back_to_the_byte(invert: bool, blur: int) -> None:
    pixels, mask = gradient(96, 64), square(96, 64, 30, 12, 40)
    settings = asked(masked=True, invert=invert, blur=blur)
    canvas = through_the_store(canvas_of(source(pixels, mask), settings, 96, 64))
    frame = frame_of(canvas, settings, 96, 64)
    assert frame.mask is not None
    result = frame.composed(painted(96, 64))
    white = (mask > 0) != invert
    far = ~grown(white, 5 * blur)
    assert far.any()
    assert (result[far] == pixels[far]).all()
    inside = ~grown(~white, 5 * blur)
    assert inside.any()
    assert (result[inside] == PAINT).all()
    fades = (result != pixels).any(-1) & (result != PAINT).any(-1)
    assert fades.any() == bool(blur)


@pytest.mark.parametrize(("left", "top"), [(50, 30), (0, 0), (112, 84)])
def test_only_the_masked_part_is_drawn(left: int, top: int) -> None:
    pixels, mask = gradient(128, 100), square(128, 100, left, top, 16)
    settings = asked(masked=True, only_masked=True, padding=8)
    canvas = through_the_store(canvas_of(source(pixels, mask), settings, 64, 64))
    assert (canvas.pixels == pixels).all()
    frame = frame_of(canvas, settings, 64, 64)
    assert frame.image.shape == (64, 64, 3)
    assert frame.mask is not None
    assert (frame.mask >= 128).mean() > 0.2, "the masked part is drawn larger"
    result = frame.composed(painted(64, 64))
    assert (result[mask == 0] == pixels[mask == 0]).all()
    assert (result[mask > 0] == PAINT).all()


def test_a_wide_part_keeps_its_proportions() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[90:100, 20:180] = 255
    settings = asked(masked=True, only_masked=True, padding=0)
    frame = frame_of(canvas_of(source(gradient(200, 200), mask), settings, 64, 64), settings, 64, 64)
    assert frame._box.size == (160, 160)


def test_outpainting_keeps_the_picture() -> None:
    pixels = gradient(64, 40)
    settings = asked(masked=True, outpaint=(16, 0, 32, 24))
    canvas = through_the_store(canvas_of(source(pixels), settings, 112, 64))
    frame = frame_of(canvas, settings, 112, 64)
    assert frame.image.shape == (64, 112, 3)
    result = frame.composed(painted(112, 64))
    assert (result[:40, 16:80] == pixels).all()
    new = np.ones((64, 112), bool)
    new[:40, 16:80] = False
    assert (result[new] == PAINT).all()


def test_outpainting_and_a_mask() -> None:
    settings = asked(masked=True, outpaint=(0, 0, 16, 0))
    canvas = canvas_of(source(gradient(64, 40), square(64, 40, 0, 0, 8)), settings, 80, 40)
    assert canvas.mask is not None
    assert canvas.mask[0, 0] == canvas.mask[39, 79] == 255
    assert canvas.mask[39, 0] == 0


@pytest.mark.parametrize(
    ("mask", "fields"),
    [
        (np.zeros((64, 64), np.uint8), {}),
        (np.zeros((64, 64), np.uint8), {"only_masked": True}),
        (np.full((64, 64), 100, np.uint8), {}),
        (np.full((64, 64), 255, np.uint8), {"invert": True}),
        (square(64, 64, 9, 9, 5), {}),  # between the cells
    ],
)
def test_an_empty_mask_is_refused(mask: np.ndarray, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="no white area") as caught:
        canvas_of(source(gradient(64, 64), mask), asked(masked=True, **fields), 64, 64)
    assert caught.value.field == "mask"


def test_a_small_mask_is_drawn_when_it_is_drawn_alone() -> None:
    settings = asked(masked=True, only_masked=True, padding=2)
    canvas_of(source(gradient(64, 64), square(64, 64, 9, 9, 5)), settings, 64, 64)


@pytest.mark.parametrize("upscaler", ["lanczos", "nearest"])
def test_a_second_pass_over_pixels_has_them_at_its_size(upscaler: str) -> None:
    picture = gradient(48, 32)
    timings = StageTimings(0.0, 0.0, 0.0, 0.0)
    first = DenoiseResult("lane", 1, "sd15", "0", "best-effort", timings, "cpu", "float32", image=picture)
    hires = HiresInput(width=96, height=64, upscaler=upscaler, strength=0.5, steps=20, sampler="ddim")
    image = second_pass_image(first, hires)
    assert image is not None
    assert (image.shape, image.dtype) == ((64, 96, 3), np.uint8)
    assert np.array_equal(image[::2, ::2], picture) == (upscaler == "nearest")
    assert np.abs(image[::2, ::2].astype(int) - picture).max() < 24
    assert second_pass_image(first, hires.model_copy(update={"upscaler": "a-model"})) is None
    assert second_pass_image(None, None) is None


# A1111's resize_image: the middle of what covers the size, or the whole with its edges repeated
def test_a_picture_is_cut_to_the_shape() -> None:
    canvas = canvas_of(source(gradient(96, 64), square(96, 64, 20, 8, 40)), asked(fit="crop", masked=True), 64, 64)
    assert (canvas.pixels == gradient(96, 64)[:, 16:80]).all()
    assert canvas.mask is not None
    assert (canvas.mask == square(96, 64, 20, 8, 40)[:, 16:80]).all()


def test_a_picture_is_extended_to_the_shape_by_its_edges() -> None:
    canvas = canvas_of(source(gradient(64, 32)), asked(fit="extend"), 64, 64)
    assert (canvas.pixels[16:48] == gradient(64, 32)).all()
    assert (canvas.pixels[:16] == gradient(64, 32)[0]).all()
    assert (canvas.pixels[48:] == gradient(64, 32)[-1]).all()
    narrow = canvas_of(source(gradient(32, 64)), asked(fit="extend"), 65, 64).pixels
    assert (narrow[:, 16:48] == gradient(32, 64)).all()
    assert (narrow[:, 48:] == gradient(32, 64)[:, -1:]).all()


def test_a_picture_whose_latents_are_stretched_stays_as_large_as_it_is() -> None:
    canvas = canvas_of(source(gradient(70, 45)), asked(fit="latent"), 128, 128)
    assert (frame_of(canvas, asked(fit="latent"), 128, 128).image == gradient(70, 45)[:40, :64]).all()


def test_what_is_masked_begins_with_the_colours_around_it() -> None:
    """A1111's masked content "fill": a plain ground goes on, whatever is hidden."""
    ground = np.full((64, 96, 3), (200, 40, 90), np.uint8)
    mask = square(96, 64, 24, 16, 32)
    hidden = np.where(mask[..., None] > 0, gradient(96, 64), ground)
    wanted = asked(fill="blur", masked=True)
    frame = frame_of(canvas_of(source(hidden, mask), wanted, 96, 64), wanted, 96, 64)
    assert np.abs(frame.image.astype(int) - ground).max() <= 8  # the blur's rounding
    assert (frame.image[mask == 0] == ground[mask == 0]).all()
    assert (frame.composed(painted(96, 64))[mask == 0] == ground[mask == 0]).all()


def test_a_second_pass_of_another_shape_is_the_middle() -> None:
    timings = StageTimings(0.0, 0.0, 0.0, 0.0)
    first = DenoiseResult("lane", 1, "m", "0", "best-effort", timings, "cpu", "float32", image=gradient(64, 64))
    hires = HiresInput(width=128, height=64, upscaler="nearest", strength=0.5, steps=10, sampler="euler")
    pixels = second_pass_image(first, hires)
    assert pixels is not None
    assert (pixels == gradient(64, 64).repeat(2, 0).repeat(2, 1)[32:96]).all()
