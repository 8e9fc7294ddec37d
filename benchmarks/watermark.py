"""How well the watermark dwt-dct-svd holds: over pictures of the demo models and over photographs.

    python -m benchmarks.watermark demo         # 500 pictures of demo-sd15, from 36 that it draws
    python -m benchmarks.watermark natural      # 500 pictures from photographs
    python -m benchmarks.watermark unmarked     # what is read from 2,000 of both that hold no mark
    python -m benchmarks.watermark speed        # milliseconds for 1024 x 1024

The photographs are files of scikit-image, scikit-learn and matplotlib, of which nothing is imported:
`pip install --no-deps scikit-image scikit-learn matplotlib`.
"""

import argparse
import io
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.text_table import text_table
from demo_models import path
from demo_models.captions import caption
from demo_models.scenes import any_scene
from deployments.engine.types import Pixels
from serve_app.config.provenance import WatermarkSettings
from serve_app.provenance.watermark import ImageWatermark
from serve_app.provenance.watermark_payload import WatermarkPayload

_SERVICE = 4711
_DRAWN, _DRAWN_AT_ONCE, _STEPS = 36, 6, 15
_CROPPED, _SCALED = 0.05, 0.75

_PHOTOGRAPHS: Mapping[str, Sequence[str]] = {
    "skimage/data": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
        "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
    "matplotlib/mpl-data/sample_data": ("grace_hopper.jpg",),
}  # fmt: skip


class NoPhotographs(Exception):
    """A package whose photographs are needed isn't installed."""


def photographs() -> list[Image.Image]:
    """All photographs. Raises NoPhotographs."""
    pictures = []
    for folder, names in _PHOTOGRAPHS.items():
        package, _, rest = folder.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise NoPhotographs(
                f"{package} isn't installed: pip install --no-deps scikit-image scikit-learn matplotlib"
            )
        pictures += [Image.open(Path(spec.origin).parent / rest / name).convert("RGB") for name in names]
    return pictures


def drawn() -> list[Image.Image]:
    """Pictures that demo-sd15 draws, 256 x 256."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(path("demo-sd15"), dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [caption(any_scene(generator := random.Random(seed)), generator) for seed in range(_DRAWN)]
    pictures: list[Image.Image] = []
    for first in range(0, _DRAWN, _DRAWN_AT_ONCE):
        pictures += pipeline(
            prompts[first : first + _DRAWN_AT_ONCE],
            height=256,
            width=256,
            num_inference_steps=_STEPS,
            generator=torch.Generator().manual_seed(first),
        ).images
    return pictures


def variants(pictures: Sequence[Image.Image], count: int, sizes: Sequence[int], seed: int = 0) -> Iterator[Pixels]:
    """Squares from anywhere in the pictures, at least half of one's shorter side, scaled to one of the sizes."""
    generator = random.Random(seed)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        shorter = min(picture.size)
        side = generator.randint(shorter // 2, shorter)
        left, top = (generator.randint(0, extent - side) for extent in picture.size)
        size = generator.choice(sizes)
        box = (left, top, left + side, top + side)
        yield np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box))


def psnr(picture: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio, in dB."""
    return float(10 * np.log10(255**2 / np.mean((picture.astype(np.float32) - other) ** 2)))


def edits(generator: random.Random) -> dict[str, Callable[[Pixels], Pixels]]:
    """What is done to a marked picture before it is read."""

    def saved(file_format: str, quality: int) -> Callable[[Pixels], Pixels]:
        def save(pixels: Pixels) -> Pixels:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, file_format, quality=quality)
            return np.asarray(Image.open(file).convert("RGB"))

        return save

    def cropped(pixels: Pixels) -> Pixels:
        size = pixels.shape[0] - round(pixels.shape[0] * _CROPPED)
        top, left = (generator.randint(0, pixels.shape[0] - size) for _ in range(2))
        return pixels[top : top + size, left : left + size]

    def scaled(pixels: Pixels) -> Pixels:
        size = round(pixels.shape[0] * _SCALED)
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))

    return {
        "PNG": saved("PNG", 0),
        "JPEG 85": saved("JPEG", 85),
        "WebP 80": saved("WEBP", 80),
        "crop by 5 %": cropped,
        "scale to 75 %": scaled,
    }


def robustness(pictures: Iterator[Pixels]) -> str:
    """The table of what is read back, and how much the marks differ from the pictures."""
    generator = random.Random(1)
    watermark = ImageWatermark(WatermarkSettings(service_id=_SERVICE))
    outcomes: dict[tuple[int, str], list[bool]] = {}
    wrong = 0
    differences: dict[int, list[float]] = {}
    for pixels in pictures:
        size = pixels.shape[0]
        job_id = f"{generator.getrandbits(128):032x}"
        marked = watermark.mark(pixels, job_id)
        differences.setdefault(size, []).append(psnr(pixels, marked))
        for name, edit in edits(generator).items():
            reading = watermark.read(edit(marked))
            outcomes.setdefault((size, name), []).append(reading == WatermarkPayload(_SERVICE, job_id[-8:]))
            wrong += reading is not None and not outcomes[size, name][-1]
    sizes = sorted(differences)
    rows = [
        [name, *(f"{100 * statistics.mean(outcomes[size, name]):.1f} %" for size in sizes)] for name in edits(generator)
    ]
    rows.append(["PSNR, median (least)", *(f"{statistics.median(differences[size]):.1f} dB" for size in sizes)])
    rows[-1][1:] = [f"{cell} ({min(differences[size]):.1f})" for cell, size in zip(rows[-1][1:], sizes, strict=True)]
    rows.append(["pictures", *(str(len(differences[size])) for size in sizes)])
    return text_table(["read after", *(f"{size} x {size}" for size in sizes)], rows) + f"\nread wrongly: {wrong}"


def unmarked(pictures: Iterator[Pixels]) -> str:
    """What is read from pictures without marks."""
    watermark = ImageWatermark(WatermarkSettings(service_id=_SERVICE))
    readings = [watermark.read(pixels) is not None for pixels in pictures]
    return f"{sum(readings)} of {len(readings)} unmarked pictures have a mark"


def speed() -> str:
    """Milliseconds of one call, the median, in this thread."""
    pixels = np.asarray(photographs()[0].resize((1024, 1024), Image.Resampling.LANCZOS))
    watermark = ImageWatermark(WatermarkSettings(service_id=_SERVICE))
    marked = watermark.mark(pixels, "0" * 32)
    calls: dict[str, Callable[[], object]] = {
        "mark": lambda: watermark.mark(pixels, "0" * 32),
        "read a mark": lambda: watermark.read(marked),
        "read none": lambda: watermark.read(pixels),
    }
    rows = []
    for name, call in calls.items():
        seconds = []
        for _ in range(50 if name == "mark" else 10):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        rows.append([name, f"{1000 * statistics.median(seconds):.1f} ms", f"{1000 * min(seconds):.1f} ms"])
    return text_table(["1024 x 1024", "median", "least"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.watermark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("demo", "natural", "unmarked", "speed"))
    parser.add_argument("--pictures", type=int, help="how many (default: 500; unmarked: 2000)")
    options = parser.parse_args(arguments)
    count = options.pictures or (2000 if options.what == "unmarked" else 500)
    try:
        if options.what == "speed":
            print(speed())
        elif options.what == "demo":
            print(robustness(variants(drawn(), count, (256, 512))))
        elif options.what == "natural":
            print(robustness(variants(photographs(), count, (512, 768))))
        else:
            halves = [variants(pictures, count // 2, (256, 512), seed=2) for pictures in (drawn(), photographs())]
            print(unmarked(itertools.chain(*halves)))
    except NoPhotographs as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
