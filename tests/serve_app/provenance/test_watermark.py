import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from demo_models.drawing import STYLES, draw
from demo_models.scenes import any_scene
from deployments.engine.types import Pixels
from serve_app.config.provenance import WatermarkSettings
from serve_app.config.settings import OutputFormat
from serve_app.images.encode import encode_image
from serve_app.provenance.watermark import BadWatermark, ImageWatermark
from serve_app.provenance.watermark_payload import WatermarkPayload
from tests.serve_app.images.test_encode import manifest
from tests.serve_app.provenance.pictures import EXTREMES, flat, photograph

JOB = "0198c1d2e3f40718293a4b5c6d7e8f90"
PAYLOAD = WatermarkPayload(4711, "6d7e8f90")
SETTINGS = WatermarkSettings(service_id=4711)


@pytest.fixture
def watermark() -> ImageWatermark:
    return ImageWatermark(SETTINGS)


def reopened(file: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@pytest.mark.parametrize("output_format", get_args(OutputFormat))
@pytest.mark.parametrize("name", ["photograph", "drawing"])
def test_it_is_read_from_a_file_of_every_format(
    watermark: ImageWatermark, output_format: OutputFormat, name: str
) -> None:
    generator = random.Random(3)
    pictures = {"photograph": photograph(1, 512, 512), "drawing": draw(any_scene(generator), 512, 512, generator)}
    marked = watermark.mark(pictures[name], JOB)
    file = encode_image(marked, output_format, manifest(), {"png": 0, "jpeg": 92, "webp": 90}[output_format])
    assert watermark.read(reopened(file)) == PAYLOAD


@pytest.mark.parametrize("name", EXTREMES)
def test_it_is_read_at_the_extremes(watermark: ImageWatermark, name: str) -> None:
    assert watermark.read(EXTREMES[name]) is None
    assert watermark.read(watermark.mark(EXTREMES[name], JOB)) == PAYLOAD


def compressed(file_format: str, quality: int) -> Callable[[Pixels], Pixels]:
    def compress(pixels: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, file_format, quality=quality)
        return reopened(file.getvalue())

    return compress


EDITS: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg 85": compressed("JPEG", 85),
    "webp 80": compressed("WEBP", 80),
    "cut at the right and below": lambda pixels: pixels[:487, :486],
    "cut at the left and above": lambda pixels: pixels[25:, 26:],
    "cut all around": lambda pixels: pixels[11:-14, 13:-12],
    "scaled to 75 %": lambda pixels: cv2.resize(pixels, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA),
    "scaled to 150 %": lambda pixels: cv2.resize(pixels, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC),
    "scaled to 500 x 500": lambda pixels: cv2.resize(pixels, (500, 500), interpolation=cv2.INTER_AREA),
}


@pytest.mark.parametrize("edit", EDITS)
def test_it_survives(watermark: ImageWatermark, edit: str) -> None:
    marked = watermark.mark(photograph(5, 512, 512), JOB)
    assert watermark.read(EDITS[edit](marked)) == PAYLOAD


def test_the_same_job_gives_the_same_pixels_and_another_one_others(watermark: ImageWatermark) -> None:
    picture = photograph(6, 256, 256)
    marked = watermark.mark(picture, JOB)
    np.testing.assert_array_equal(marked, watermark.mark(picture, JOB))
    other = "ffffffff" + JOB[8:]  # its end is the same
    np.testing.assert_array_equal(marked, watermark.mark(picture, other))
    assert (marked != watermark.mark(picture, JOB[:-1] + "1")).any()


def test_a_mark_names_its_service_and_job() -> None:
    picture = photograph(7, 256, 256)
    for service_id in (0, 65535):
        for job_id in ("0" * 32, "f" * 32):
            watermark = ImageWatermark(WatermarkSettings(service_id=service_id))
            expected = WatermarkPayload(service_id, job_id[-8:])
            assert ImageWatermark(SETTINGS).read(watermark.mark(picture, job_id)) == expected


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 4096), (8, 8), (64, 72), (63, 80), (200, 7)])
def test_a_picture_without_room_stays_as_it_is(watermark: ImageWatermark, height: int, width: int) -> None:
    picture = photograph(8, height, width)
    np.testing.assert_array_equal(watermark.mark(picture, JOB), picture)
    assert watermark.read(picture) is None


@pytest.mark.parametrize(("height", "width"), [(64, 80), (8, 640), (640, 8), (67, 87)])
def test_the_smallest_pictures_with_room(watermark: ImageWatermark, height: int, width: int) -> None:
    picture = photograph(8, height, width)
    assert watermark.read(picture) is None
    assert watermark.read(watermark.mark(picture, JOB)) == PAYLOAD


def test_no_mark_is_read_from_unmarked_pictures(watermark: ImageWatermark) -> None:
    generator = random.Random(1)
    for seed in range(100):
        height, width = generator.choice([96, 128, 200]), generator.choice([96, 128, 200])
        colour = [generator.randrange(256) for _ in range(3)]
        assert watermark.read(photograph(seed, height, width, generator.uniform(5, 90))) is None
        assert watermark.read(flat(*colour, height, width)) is None
        assert watermark.read(draw(any_scene(generator), height, width, generator, generator.choice(STYLES))) is None


@pytest.mark.parametrize("service_id", [-1, 65536, "1", 1.5])
def test_settings_refuse_another_service_id(service_id: object) -> None:
    with pytest.raises(ValidationError, match="service_id"):
        WatermarkSettings.model_validate({"service_id": service_id})


def test_settings_need_a_service_id_and_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="service_id"):
        WatermarkSettings.model_validate({})
    with pytest.raises(ValidationError, match="strength"):
        WatermarkSettings.model_validate({"service_id": 1, "strength": 2})


PLUGIN = '''
"""A model with TrustMark's interface: each bit is in the lowest bits of one of 64 stripes of red."""

import numpy as np
from PIL import Image


class Stripes:
    capacity = 61

    def schemaCapacity(self):
        return self.capacity

    def encode(self, in_cover_image, string_secret, MODE="text", WM_STRENGTH=1.0, WM_MERGE="bilinear"):
        assert MODE == "binary" and len(string_secret) == self.capacity
        pixels = np.array(in_cover_image)
        word = [*map(int, string_secret), *[1, 0] * self.capacity][: pixels.shape[0]]
        pixels[: len(word), :, 0] = pixels[: len(word), :, 0] & 254 | np.array(word, np.uint8)[:, None]
        return Image.fromarray(pixels)

    def decode(self, in_stego_image, MODE="text", DETECTFIRST=False, ROTATION=False):
        assert MODE == "binary"
        rows = (np.array(in_stego_image)[..., 0] & 1).mean(axis=1)
        present = bool(np.isin(rows, (0, 1)).all())
        return ("".join(str(int(row)) for row in rows[: self.capacity]) if present else "", present, 1)


class Narrow(Stripes):
    capacity = 40


class Shrinking(Stripes):
    def encode(self, *args, **options):
        return super().encode(*args, **options).resize((32, 32))



'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose entry points are plug-ins, as pip would install it."""
    (tmp_path / "striped_watermark.py").write_text(PLUGIN, encoding="utf-8")
    folder = tmp_path / "striped_watermark-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: striped-watermark\nVersion: 1.0\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text(
        "[darkroom.watermarks]\n"
        "stripes = striped_watermark:Stripes\n"
        "narrow = striped_watermark:Narrow\n"
        "shrinking = striped_watermark:Shrinking\n"
        "renamed = striped_watermark:Renamed\n"
        "lost = no_such_module:Model\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "striped_watermark", raising=False)


@pytest.mark.usefixtures("plugins")
def test_a_plugin_marks_and_reads() -> None:
    watermark = ImageWatermark(WatermarkSettings(service_id=4711, method="stripes"))
    picture = photograph(9, 61, 64)
    marked = watermark.mark(picture, JOB)
    assert marked.dtype == np.uint8
    assert (marked != picture).any()
    assert watermark.read(marked) == PAYLOAD
    assert watermark.read(picture) is None


@pytest.mark.usefixtures("plugins")
def test_a_mark_of_somebody_else_is_not_ours() -> None:
    from striped_watermark import Stripes

    theirs = Stripes().encode(Image.fromarray(photograph(9, 61, 64)), "01" * 30 + "0", MODE="binary")
    assert ImageWatermark(WatermarkSettings(service_id=4711, method="stripes")).read(np.asarray(theirs)) is None


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("stripe", "unknown watermark 'stripe'; known: dwt-dct-svd, lost, narrow, renamed, shrinking, stripes"),
        ("lost", "the watermark 'lost' can't be imported: No module named 'no_such_module'"),
        ("renamed", "the watermark 'renamed' can't be imported: .*Renamed"),
        ("narrow", "the watermark 'narrow' holds 40 bits; at least 56 are needed"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused(method: str, message: str) -> None:
    with pytest.raises(BadWatermark, match=message):
        ImageWatermark(WatermarkSettings(service_id=4711, method=method))


@pytest.mark.usefixtures("plugins")
def test_a_plugin_that_changes_the_size_is_refused() -> None:
    watermark = ImageWatermark(WatermarkSettings(service_id=4711, method="shrinking"))
    with pytest.raises(BadWatermark, match="'shrinking' made"):
        watermark.mark(photograph(9, 61, 64), JOB)
