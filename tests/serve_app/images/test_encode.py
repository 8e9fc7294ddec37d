import io
import random
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.engine.types import Pixels
from serve_app.config.settings import OutputFormat
from serve_app.images.encode import encode_image, encode_preview
from serve_app.images.infotext import texts_of
from serve_app.schemas.manifest import CheckpointRecord, Manifest, RefinerRecord, SafetyRecord
from tests.serve_app.images.manifest_files import read_manifest

FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)


def picture(height: int = 48, width: int = 64) -> Pixels:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 4 % 256, columns * 3 % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "versions": {"darkroom": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
            "model": CheckpointRecord(name="demo-sdxl", hash="ab" * 32),
            "refiner": RefinerRecord(name="demo-sdxl-refiner", hash="cd" * 32, switch_at=0.8),
            "prompt": "a large red circle",
            "negative_prompt": "blurry",
            "seed": 2**63 - 1,
            "steps": 20,
            "guidance_scale": 7.1,
            "width": 64,
            "height": 48,
            "sampler": "dpmpp_2m_karras",
            "device": "cpu",
            "dtype": "float32",
            "reproducibility": "bucket:2",
            "safety": SafetyRecord(mode="block", action="none", score=0.1234567890123),
            **changes,
        }
    )


TEXTS = [
    "a large red circle and a small yellow square",
    'quotes " and <b>&amp;</b> and </darkroom:manifest> and ]]>',
    "line\nbreaks\r\nand\ttabs",
    "control \0 characters \x1b \x7f",
    "“Umlaute äöü”, 圆形, \U0001f534, e\u0301",
    "Negative prompt: inner\nSteps: 3, Sampler: x",
    "",
    "x" * 20_000,
]


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_manifest_comes_back_from_the_file(output_format: OutputFormat, text: str) -> None:
    written = manifest(prompt=text, negative_prompt=text[::-1])
    assert read_manifest(encode_image(picture(), output_format, written)) == written


@settings(max_examples=60)
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    negative=st.text(st.characters(exclude_categories=["Cs"])),
    seed=st.integers(0, 2**63 - 1),
    guidance=st.floats(1, 20),
    output_format=st.sampled_from(FORMATS),
)
def test_any_manifest_comes_back(
    prompt: str, negative: str, seed: int, guidance: float, output_format: OutputFormat
) -> None:
    written = manifest(prompt=prompt, negative_prompt=negative, seed=seed, guidance_scale=guidance, refiner=None)
    assert read_manifest(encode_image(picture(8, 8), output_format, written)) == written


def test_a_png_holds_exactly_the_pixels() -> None:
    with Image.open(io.BytesIO(encode_image(picture(), "png", manifest()))) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), picture())


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_lossy_formats_are_near_and_follow_the_quality(output_format: OutputFormat) -> None:
    files = {quality: encode_image(picture(256, 256), output_format, manifest(), quality) for quality in (30, 92)}
    assert len(files[30]) < len(files[92])
    with Image.open(io.BytesIO(files[92])) as image:
        assert image.format == output_format.upper()
        error = np.abs(np.asarray(image.convert("RGB"), dtype=float) - picture(256, 256)).mean()
    assert error < 8


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_same_picture_and_manifest_give_the_same_file(output_format: OutputFormat) -> None:
    assert encode_image(picture(), output_format, manifest()) == encode_image(picture(), output_format, manifest())


def infotext_in(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            return str(image.info["parameters"])
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return str(comment[8:].decode("utf-16-be"))


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_infotext_is_where_other_tools_look(output_format: OutputFormat) -> None:
    assert infotext_in(encode_image(picture(), output_format, manifest())) == (
        "a large red circle\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.1, Seed: 9223372036854775807, "
        "Size: 64x48, Model hash: ababababab, Model: demo-sdxl, Refiner: demo-sdxl-refiner [cdcdcdcdcd], "
        "Refiner switch at: 0.8, Darkroom sampler: diffusers dpmpp_2m_karras, Version: darkroom 0.1.0"
    )


def test_a_text_too_long_for_a_jpeg_costs_the_text_not_the_picture() -> None:
    long = manifest(prompt="x" * 100_000)
    data = encode_image(picture(), "jpeg", long)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 48)
    assert read_manifest(data) is None
    assert read_manifest(encode_image(picture(), "png", long)) == long
    assert read_manifest(encode_image(picture(), "webp", long)) == long


def test_a_manifest_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="colour"):
        manifest(colour="red")
    with pytest.raises(ValueError, match="seed"):
        manifest(seed=2**63)
    with pytest.raises(ValueError, match="prompt"):
        manifest(prompt="lone surrogate \ud800")


# Pillow warns of tags that lie about their size, and goes on
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("output_format", FORMATS)
def test_broken_files_raise_nothing(output_format: OutputFormat) -> None:
    good = encode_image(picture(16, 16), output_format, manifest())
    draw = random.Random(7)
    for _ in range(300):
        broken = bytearray(good)
        for _ in range(draw.randrange(1, 8)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        texts_of(bytes(broken[: draw.randrange(len(broken) + 1)] if draw.random() < 0.3 else broken))


@pytest.mark.parametrize("size", [16, 32, 128])
def test_a_preview_is_small(size: int) -> None:
    data = encode_preview(picture(size, size))
    assert len(data) < 8_000
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (size, size))
