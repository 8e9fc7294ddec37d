import io
import json
import random
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deployments.engine.types import Pixels
from serve_app.images.encode import (
    CheckpointRecord,
    Manifest,
    OutputFormat,
    RefinerRecord,
    SafetyRecord,
    encode_image,
    encode_preview,
    read_manifest,
)

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


@settings(max_examples=60, deadline=None)
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


def infotext_of(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            return str(image.info["parameters"])
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return str(comment[8:].decode("utf-16-be"))


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_infotext_is_where_other_tools_look(output_format: OutputFormat) -> None:
    assert infotext_of(encode_image(picture(), output_format, manifest())) == (
        "a large red circle\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.1, Seed: 9223372036854775807, "
        "Size: 64x48, Model hash: ababababab, Model: demo-sdxl, Refiner: demo-sdxl-refiner [cdcdcdcdcd], "
        "Refiner switch at: 0.8, Version: darkroom 0.1.0"
    )


def test_the_infotext_names_schedules_and_guidance_apart() -> None:
    text = manifest(sampler="euler_a_trailing", guidance_rescale=0.7, guidance_start=0.25, guidance_end=0.8).infotext()
    assert "Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 7.1" in text
    assert "CFG Rescale: 0.7, Guidance start: 0.25, Guidance end: 0.8" in text


def test_the_infotext_names_a_second_pass_of_another_shape_by_its_size() -> None:
    hires = {"upscaler": "lanczos", "strength": 0.5, "steps": 20, "sampler": "dpmpp_2m_karras"}
    text = manifest(hires={"width": 128, "height": 88, **hires}).infotext()
    assert "Size: 64x48" in text
    assert "Denoising strength: 0.5" in text
    assert "Hires resize: 128x88, Hires steps: 10, Hires upscaler: Lanczos," in text
    assert "Hires sampler" not in text
    assert "Hires upscale: 2," in manifest(hires={"width": 128, "height": 96, **hires}).infotext()


def test_the_infotext_leaves_out_what_was_not_used_and_quotes_what_would_mislead() -> None:
    text = manifest(
        negative_prompt="",
        refiner=None,
        sampler="euler_a",
        strength=0.75,
        clip_skip=1,
        model=CheckpointRecord(name="odd, name: here", hash="0" * 64),
    ).infotext()
    assert text.splitlines()[1] == (
        "Steps: 20, Sampler: Euler a, CFG scale: 7.1, Seed: 9223372036854775807, Size: 64x48, "
        'Model hash: 0000000000, Model: "odd, name: here", Denoising strength: 0.75, Clip skip: 2, '
        "Version: darkroom 0.1.0"
    )


def test_a_text_too_long_for_a_jpeg_costs_the_text_not_the_picture() -> None:
    long = manifest(prompt="x" * 100_000)
    data = encode_image(picture(), "jpeg", long)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 48)
    assert read_manifest(data) is None
    assert read_manifest(encode_image(picture(), "png", long)) == long
    assert read_manifest(encode_image(picture(), "webp", long)) == long


def test_a_manifest_of_another_version_is_read_without_the_fields_that_are_unknown_here() -> None:
    file = io.BytesIO()
    info = PngInfo()
    info.add_itxt("darkroom", json.dumps({**manifest().model_dump(mode="json"), "step_cache": None}))
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    assert read_manifest(file.getvalue()) == manifest()


def test_a_manifest_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="colour"):
        manifest(colour="red")
    with pytest.raises(ValueError, match="seed"):
        manifest(seed=2**63)
    with pytest.raises(ValueError, match="prompt"):
        manifest(prompt="lone surrogate \ud800")


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
def test_what_is_no_image_has_no_manifest(data: bytes) -> None:
    assert read_manifest(data) is None


def test_an_image_of_somebody_elses_has_no_manifest() -> None:
    for file_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        file = io.BytesIO()
        Image.fromarray(picture()).save(file, file_format)
        assert read_manifest(file.getvalue()) is None


@pytest.mark.parametrize("size", [(14_000, 14_000), (9_000, 9_000)])
def test_a_huge_image_is_not_looked_into(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    assert read_manifest(file.getvalue()) is None


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
        read_manifest(bytes(broken[: draw.randrange(len(broken) + 1)] if draw.random() < 0.3 else broken))


@pytest.mark.parametrize("size", [16, 32, 128])
def test_a_preview_is_small(size: int) -> None:
    data = encode_preview(picture(size, size))
    assert len(data) < 8_000
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (size, size))
