"""A1111's infotext: what it says, and that nothing from outside can break its reader."""

import io
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from serve_app.config.settings import OutputFormat
from serve_app.images.encode import encode_image
from serve_app.images.infotext import infotext_of, parse_infotext, texts_of
from serve_app.schemas.manifest import CheckpointRecord
from tests.serve_app.images.test_encode import FORMATS, manifest, picture

# as A1111 1.10 writes it
FOREIGN = (
    "a (red:1.3) circle, on the table,\nSteps to heaven: many\nNegative prompt: blue,\nyellow\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
    'Model hash: c0d1994c73, Model: realistic, Lora hashes: "detail: 7bf0ad0f0f47, other: 0123456789ab", '
    "Clip skip: 2, Version: v1.10.1"
)


def test_a1111_s_own_text() -> None:
    found = parse_infotext(FOREIGN)
    assert found["Prompt"] == "a (red:1.3) circle, on the table,\nSteps to heaven: many"
    assert found["Negative prompt"] == "blue,\nyellow"
    assert (found["Steps"], found["Sampler"], found["Schedule type"]) == ("20", "DPM++ 2M", "Karras")
    assert (found["Size"], found["Size-1"], found["Size-2"]) == ("512x768", "512", "768")
    assert found["Lora hashes"] == "detail: 7bf0ad0f0f47, other: 0123456789ab"
    assert (found["Clip skip"], found["Version"]) == ("2", "v1.10.1")


def test_our_own_text_comes_back() -> None:
    prompts = {"prompt": "a red circle,\nand a square", "negative_prompt": "blue, yellow"}
    found = parse_infotext(infotext_of(manifest(**prompts, seed=7)))
    assert (found["Prompt"], found["Negative prompt"]) == tuple(prompts.values())
    assert (found["Steps"], found["CFG scale"], found["Seed"]) == ("20", "7.1", "7")
    assert (found["Sampler"], found["Schedule type"]) == ("DPM++ 2M", "Karras")
    assert (found["Model"], found["Refiner switch at"]) == ("demo-sdxl", "0.8")


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        ("", "", ""),
        ("just a prompt", "just a prompt", ""),
        ("a prompt, with: a colon", "a prompt, with: a colon", ""),
        ("one\ntwo", "one\ntwo", ""),
        ("one\nNegative prompt: two", "one", "two"),
        ("Negative prompt: two\nSteps: 1, Sampler: x, Seed: 2", "", "two"),
    ],
)
def test_texts_without_all_parts(text: str, prompt: str, negative: str) -> None:
    found = parse_infotext(text)
    assert (found["Prompt"], found["Negative prompt"]) == (prompt, negative)


@pytest.mark.parametrize("output_format", FORMATS)
def test_our_files_of_every_type(output_format: OutputFormat) -> None:
    data = encode_image(picture(), output_format, manifest())
    texts = texts_of(data)
    assert texts is not None
    assert texts[0] == infotext_of(manifest())


def test_other_texts_stand_beside_it() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", FOREIGN)
    info.add_text("Software", "something")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    assert texts_of(file.getvalue()) == (FOREIGN, {"Software": "something"})


@pytest.mark.parametrize("code", [b"ASCII\0\0\0", bytes(8)])
def test_a_comment_in_ascii(code: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = code + b"a cat\nSteps: 1, Sampler: x, Seed: 2"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif.tobytes())
    texts = texts_of(file.getvalue())
    assert texts is not None
    assert parse_infotext(texts[0])["Seed"] == "2"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20)])
def test_what_is_no_image_of_ours(data: bytes) -> None:
    assert texts_of(data) is None


@pytest.mark.parametrize("size", [(14_000, 14_000), (9_000, 9_000)])
def test_a_huge_image_is_not_looked_into(size: tuple[int, int]) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", FOREIGN)
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG", pnginfo=info)
    assert texts_of(file.getvalue()) is None


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    found = parse_infotext(text)
    assert all(isinstance(value, str) for value in found.values())


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_read_or_not(noise: bytes, cut: int) -> None:
    whole = encode_image(picture(), "png", manifest())
    texts_of(noise)
    texts_of(whole[:cut] + noise + whole[cut:])


@pytest.mark.parametrize("piece", ["a: ", '"', '"\\', "\n", "a", " ", 'a:"b,'])
def test_long_texts_are_read_in_time(piece: str) -> None:
    started = time.process_time()
    parse_infotext("Steps: " + piece * 100_000)
    assert time.process_time() - started < 10  # linear takes 0.1 s, quadratic many minutes


def test_the_infotext_names_schedules_and_guidance_apart() -> None:
    text = infotext_of(
        manifest(sampler="euler_a_trailing", guidance_rescale=0.7, guidance_start=0.25, guidance_end=0.8)
    )
    assert "Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 7.1" in text
    assert "CFG Rescale: 0.7, Guidance start: 0.25, Guidance end: 0.8" in text


@pytest.mark.parametrize(
    ("numbers", "pairs"),
    [
        ({"sampler": "webui_euler"}, "Sampler: Euler, Schedule type: Uniform, CFG scale: 7.1"),
        ({"sampler": "webui_dpmpp_2m_sde_karras"}, "Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 7.1"),
        ({"sampler": "webui_euler_align_your_steps_xl"}, "Sampler: Euler, Schedule type: Align Your Steps, CFG"),
        ({"sampler": "webui_unipc"}, "Sampler: UniPC, CFG scale: 7.1"),
        ({"sampler": "webui_ddim", "eta": 1.0}, "Eta DDIM: 1"),
        ({"sampler": "webui_euler_a", "eta": 0.5, "s_noise": 1.1}, "Eta: 0.5, Sigma noise: 1.1"),
        (
            {"sampler": "webui_euler", "s_churn": 5.0, "s_tmin": 0.5, "s_tmax": 9.0},
            "Sigma churn: 5, Sigma tmin: 0.5, Sigma tmax: 9",
        ),
    ],
)
def test_the_infotext_names_the_web_ui_s_samplers_as_it_does(numbers: dict[str, Any], pairs: str) -> None:
    text = infotext_of(manifest(**numbers))
    assert pairs in text
    assert "Darkroom sampler" not in text
    assert "Eta" not in infotext_of(manifest(sampler="webui_euler_a", eta=1.0))


def test_the_infotext_names_a_second_pass_of_another_shape_by_its_size() -> None:
    hires = {"upscaler": "lanczos", "strength": 0.5, "steps": 20, "sampler": "dpmpp_2m_karras"}
    text = infotext_of(manifest(hires={"width": 128, "height": 88, **hires}))
    assert "Size: 64x48" in text
    assert "Denoising strength: 0.5" in text
    assert "Hires resize: 128x88, Hires steps: 10, Hires upscaler: Lanczos," in text
    assert "Hires sampler" not in text
    assert "Hires upscale: 2," in infotext_of(manifest(hires={"width": 128, "height": 96, **hires}))


def test_the_infotext_leaves_out_what_was_not_used_and_quotes_what_would_mislead() -> None:
    text = infotext_of(
        manifest(
            negative_prompt="",
            refiner=None,
            sampler="euler_a",
            strength=0.75,
            clip_skip=1,
            model=CheckpointRecord(name="odd, name: here", hash="0" * 64),
        )
    )
    assert text.splitlines()[1] == (
        "Steps: 20, Sampler: Euler a, CFG scale: 7.1, Seed: 9223372036854775807, Size: 64x48, "
        'Model hash: 0000000000, Model: "odd, name: here", Denoising strength: 0.75, Clip skip: 2, '
        "Darkroom sampler: diffusers euler_a, Version: darkroom 0.1.0"
    )


def test_a_comment_without_a_code_and_a_jpeg_s_own() -> None:
    written = b"a cat\nSteps: 1, Sampler: x, Seed: 2"
    exif, file = Image.Exif(), io.BytesIO()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = written
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    assert texts_of(file.getvalue()) == (written.decode(), {})
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", comment=written)
    assert texts_of(file.getvalue()) == (written.decode(), {})
