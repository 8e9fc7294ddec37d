"""Pictures from outside: what is read, how, and what is refused before it is decoded."""

import hashlib
import io
import struct
import tracemalloc
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from deployments.engine.errors import InvalidRequest
from serve_app.images.decode import drawn_mask, mask_of_transparency, picture_size, read_picture, read_source
from tests.serve_app.images.image_bombs import chunk, corpus, good, png
from tests.serve_app.images.pictures import encoded, file_of, gradient, received, sent, square

MOST = 1 << 20
PREFIXES = ("", "data:image/png;base64,", "data:;base64,", "DATA:image/x-png;charset=utf-8;base64,")


def refusal(image: str, mask: str | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_source(image, mask, MOST)
    return caught.value


@pytest.mark.parametrize("prefix", PREFIXES)
def test_base64_and_data_urls(prefix: str) -> None:
    pixels = gradient(40, 24)
    data = file_of(pixels)
    source = read_source(prefix + encoded(data), None, MOST)
    assert (source.image.pixels == pixels).all()
    assert (source.image.width, source.image.height) == (40, 24)
    assert source.image.sha256 == hashlib.sha256(data).hexdigest()


def test_base64_with_line_breaks() -> None:
    text = sent(gradient(16, 8))
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert (read_source(lines, None, MOST).image.pixels == gradient(16, 8)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_kind_of_file(kind: str) -> None:
    flat = np.full((16, 24, 3), (200, 40, 90), np.uint8)
    read = read_source(sent(flat, kind), None, MOST).image.pixels
    assert np.abs(read.astype(int) - flat).max() <= 8


def test_a_large_colour_profile_is_read_over() -> None:
    """As printers' are; Pillow by itself takes such a file for no PNG."""
    data = io.BytesIO()
    profile = bytes(range(256)) * (2 << 12)
    Image.fromarray(gradient(16, 8)).save(data, "PNG", icc_profile=profile)
    assert (read_source(encoded(data.getvalue()), None, MOST).image.pixels == gradient(16, 8)).all()


def test_exif_turns_the_picture() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned a quarter to the right
    flat = np.zeros((16, 24, 3), np.uint8)
    flat[:, :12] = 255
    turned = read_source(sent(flat, "JPEG", quality=95, exif=exif), None, MOST).image.pixels
    assert turned.shape == (24, 16, 3)
    assert turned[:10].min() > 200
    assert turned[14:].max() < 60


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_the_size_alone_is_the_turned_picture_s(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = sent(gradient(64, 40), kind, exif=exif)
    picture = read_picture("image", image, MOST)
    assert picture_size("image", image, MOST) == (picture.width, picture.height)


def test_the_size_alone_needs_no_pixels() -> None:
    file = file_of(gradient(40, 30))
    without = encoded(file[: file.index(b"IDAT") + 4])
    assert picture_size("image", without, MOST) == (40, 30)
    with pytest.raises(InvalidRequest):
        read_picture("image", without, MOST)
    with pytest.raises(InvalidRequest, match="pixels, at most"):
        picture_size("image", without, 40 * 30 - 1)


def test_transparency_is_white_in_a_picture_and_black_in_a_mask() -> None:
    clear = np.full((8, 8, 4), (10, 20, 30, 0), np.uint8)
    clear[:, :4, 3] = 255
    source = read_source(sent(clear), sent(np.full((8, 8, 4), (255, 255, 255, 0), np.uint8)), MOST)
    assert source.image.pixels[0, 0].tolist() == [10, 20, 30]
    assert source.image.pixels[0, 7].tolist() == [255, 255, 255]
    assert source.mask is not None
    assert source.mask.pixels.max() == 0


def test_sixteen_bits_are_scaled() -> None:
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    grey = read_source(sent(deep), None, MOST).image.pixels
    assert (grey[..., 0] == (deep >> 8)).all()


@pytest.mark.parametrize("mode", ["P", "L", "1", "LA", "CMYK"])
def test_other_colours_become_rgb(mode: str) -> None:
    picture = Image.new(mode, (16, 8))
    pixels = read_source(sent(picture, "JPEG" if mode == "CMYK" else "PNG"), None, MOST).image.pixels
    assert pixels.shape == (8, 16, 3)


@pytest.mark.parametrize(
    "text",
    [
        "http://example.org/a.png",
        "https://example.org/a.png",
        "HTTP://x/",
        "file:///etc/passwd",
        "ftp://x/y",
        "data:,x",
    ],
)
def test_nothing_is_fetched(text: str) -> None:
    assert "nothing is fetched" in refusal(text).message


@pytest.mark.parametrize("text", ["", "data:image/png;base64,", "!!!", "a", "äöü", "\ud800", "AAAA" * 10])
def test_what_is_no_picture(text: str) -> None:
    assert refusal(text).field == "image"
    assert refusal(sent(gradient(8, 8)), text).field == "mask"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_kinds_of_files_are_refused(kind: str) -> None:
    assert "isn't a readable PNG, JPEG or WebP" in refusal(sent(gradient(16, 16), kind)).message


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    rows = zlib.compress(bytes(3 * 4000 + 1) * 4000)
    bomb = encoded(png(4000, 4000, chunk(b"IDAT", rows)))
    tracemalloc.start()
    message = refusal(bomb).message
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == f"image has 16000000 pixels, at most {MOST}"
    assert most < 2 << 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_ends_too_early_is_refused(kind: str) -> None:
    whole = file_of(gradient(64, 64), kind)
    for length in (len(whole) // 4, len(whole) // 2, len(whole) - len(whole) // 3):
        assert "isn't a readable" in refusal(encoded(whole[:length])).message


def test_rows_that_a_file_promises_and_lacks_are_black() -> None:
    honest = file_of(gradient(64, 64))
    header = b"IHDR" + honest[16:20] + struct.pack(">I", 600) + honest[24:29]
    lying = honest[:12] + header + struct.pack(">I", zlib.crc32(header)) + honest[33:]
    pixels = read_source(encoded(lying), None, MOST).image.pixels
    assert pixels.shape == (600, 64, 3)
    assert not pixels[64:].any()  # and nothing that was in the process's memory before
    assert refusal(encoded(png((1 << 31) - 1, (1 << 31) - 1))).field == "image"


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_not_decoded() -> None:
    picture = file_of(Image.new("RGB", (1024, 1024)), "JPEG", progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x10\x00\x00"  # each is a pass over all pixels
    assert read_source(encoded(picture[:-2] + scan * 50 + picture[-2:]), None, MOST).image.width == 1024
    assert "isn't a readable" in refusal(encoded(picture[:-2] + scan * 200_000 + picture[-2:])).message


def test_transparency_becomes_a_mask() -> None:
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[:, :4, 3] = (0, 100, 200, 255)
    made = mask_of_transparency("mask", file_of(clear), MOST)
    source = read_source(sent(gradient(8, 8)), encoded(made), MOST)
    assert source.mask is not None
    assert source.mask.pixels[0].tolist() == [255, 155, 55, 0, 0, 0, 0, 0]
    for opaque in (file_of(gradient(8, 8)), file_of(gradient(8, 8), "JPEG"), png(60_000, 60_000), b"x"):
        with pytest.raises(InvalidRequest) as caught:
            mask_of_transparency("mask", opaque, MOST)
        assert caught.value.field == "mask"


def test_a_mask_of_another_size_is_refused() -> None:
    error = refusal(sent(gradient(64, 64)), sent(square(32, 64, 0, 0, 8)))
    assert (error.field, "32x64" in error.message) == ("mask", True)


def test_files_made_to_hurt_are_read_or_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of them
        for name, data in corpus().items():
            try:
                assert read_source(encoded(data), None, MOST).image.pixels.size <= 3 * MOST, name
            except InvalidRequest:
                continue
        for data in good().values():
            read_source(encoded(data), None, MOST)


def alpha(values: np.ndarray, mode: str = "RGBA") -> Image.Image:
    """A black picture that is as opaque as `values`, uint8 (height, width)."""
    image = Image.new(mode, values.shape[::-1])
    image.putalpha(Image.fromarray(values))
    return image


# A1111's create_binary_mask: where there is transparency, what is opaque by more than half is painted
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_by_its_alpha(mode: str) -> None:
    values = np.where(square(40, 24, 8, 4, 12) > 0, 129, 128).astype(np.uint8)
    drawn = received(drawn_mask("mask", file_of(alpha(values, mode)), (40, 24), MOST))
    assert (drawn == square(40, 24, 8, 4, 12)).all()


def test_a_mask_without_transparency_goes_by_its_brightness() -> None:
    grey = gradient(40, 24)[..., 0]
    opaque = Image.merge("RGBA", [*[Image.fromarray(grey)] * 3, Image.new("L", (40, 24), 255)])
    for image in (Image.fromarray(grey), opaque):
        assert (received(drawn_mask("mask", file_of(image), (40, 24), MOST)) == grey).all()


@pytest.mark.parametrize("blur", [(6, 0), (0, 5), (8, 3)])
def test_a_mask_s_blur_may_differ_across_and_down(blur: tuple[int, int]) -> None:
    """As A1111 blurs it: a Gaussian across, then one down, of 2.5 sigma each side."""
    mask = square(96, 64, 30, 20, 24)
    drawn = received(drawn_mask("mask", file_of(mask), (96, 64), MOST, blur))
    wanted = mask
    for sigma, along in zip(blur, (0, 1), strict=True):
        if sigma:
            taps = 2 * int(2.5 * sigma + 0.5) + 1
            wanted = cv2.GaussianBlur(wanted, (1, taps) if along else (taps, 1), sigma)
    assert np.abs(drawn.astype(int) - wanted).max() <= 8  # Pillow's Gaussian is three boxes


def test_a_mask_is_brought_to_the_image_s_size() -> None:
    drawn = received(drawn_mask("mask", file_of(square(20, 12, 0, 0, 10)), (40, 24), MOST))
    assert drawn.shape == (24, 40)
    assert drawn[2:16, 2:16].min() > 240
    assert drawn[:, 24:].max() < 15
    with pytest.raises(InvalidRequest, match="mask isn't a readable"):
        drawn_mask("mask", b"x", (40, 24), MOST)
