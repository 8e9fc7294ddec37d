"""The command line that measures a packaged checkpoint: `python -m demo_models.score NAME`.

Draws held-out prompts with the stock pipeline, lets `scoring` judge them, and writes the model card.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from rich.progress import track
from rich.table import Table

from demo_models import DETECTORS, IMAGE_ENCODER, IP_ADAPTERS, NAMES, detector, ip_adapter, path
from demo_models.captions import caption
from demo_models.card import SCORES, Row, write_card, write_detector_card, write_ip_adapter_card
from demo_models.classifying import accuracy, classify
from demo_models.detecting import IOU, score_detector
from demo_models.drawing import STYLES, draw
from demo_models.latents import Size
from demo_models.nsfw import LABELS
from demo_models.pipelines import SAMPLERS, Painter, painter_of, shown_painter
from demo_models.scenes import Scene, held_out_scenes
from demo_models.scoring import SceneScore, score_image
from demo_models.terminal import CONSOLE
from demo_models.unknown_words import HELD_OUT
from demo_models.unknown_words import held_out_prompts as unknown_prompts

SIZES: tuple[Size, ...] = ((256, 256), (192, 256), (256, 192), (320, 320))
STEPS = 20
GUIDANCE = 5.0
BATCH = 4
NEUTRAL = "a picture"


def style_of(name: str) -> str:
    return next((style for style in STYLES if name.endswith(style)), STYLES[0])


def held_out_prompts(count: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Scenes that were never trained on, each with one of its captions."""
    rng = random.Random(f"prompts {seed}")
    return [(scene, caption(scene, rng)) for scene in held_out_scenes(count, seed)]


def score(painter: Painter, prompts: list[tuple[Scene, str]], size: Size, style: str) -> list[SceneScore]:
    found = []
    for start in track(range(0, len(prompts), BATCH), f"{size[0]}x{size[1]}", console=CONSOLE):
        part = prompts[start : start + BATCH]
        pictures = painter([text for _, text in part], size, list(range(start, start + len(part))))
        found += [score_image(picture, scene, style) for picture, (scene, _) in zip(pictures, part, strict=True)]
    return found


def main(
    name: Annotated[str, typer.Argument(help=", ".join((*NAMES, detector.NAME, ip_adapter.NAME)))],
    prompts: Annotated[int, typer.Option(help="Held-out prompts at 256x256.")] = 200,
    other_prompts: Annotated[int, typer.Option(help="Held-out prompts at each other size.")] = 40,
    sampler: Annotated[str, typer.Option(help=", ".join(SAMPLERS))] = "dpmpp_2m",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    card: Annotated[bool, typer.Option(help="Write scores.json and README.md.")] = True,
) -> None:
    torch.set_num_threads(threads)
    if name == detector.NAME:
        rows = detector_rows(prompts)
    elif name == ip_adapter.NAME:
        rows = ip_adapter_rows(prompts, sampler)
    elif name == "demo-nsfw":
        found = accuracy(path(name), path("demo-sd15") / "vae", prompts)
        rows = [
            Row(f"{label} pictures called {label}", "argmax", f"{prompts} held-out pictures", f"{share:.1%}")
            for label, share in found.items()
        ]
    else:
        rows = painter_rows(name, prompts, other_prompts, sampler)
    table = Table("measured", "with", "on", "value")
    for row in rows:
        table.add_row(row.what, row.how, row.on, row.value)
    CONSOLE.print(table)
    if card and name == detector.NAME:
        _keep(path(DETECTORS), rows)
        write_detector_card(path(DETECTORS))
    elif card and name == ip_adapter.NAME:
        _keep(path(IP_ADAPTERS), rows)
        write_ip_adapter_card(path(IP_ADAPTERS), path(IMAGE_ENCODER))
    elif card:
        _keep(path(name), rows)
        write_card(name)


def detector_rows(count: int) -> list[Row]:
    pictures = detector.held_out_pictures(
        AutoencoderKL.from_pretrained(path("demo-sd15") / "vae", dtype=torch.float32), count
    )
    score = score_detector(path(DETECTORS), detector.NAME, pictures)
    how, on = f"confidence {detector.CONFIDENCE:g}", f"{score.shapes} shapes of {count} held-out pictures"
    return [
        Row("found, with its name", f"{how}, IoU >= {IOU:g}", on, f"{score.named / score.shapes:.1%}"),
        Row("found, whatever its name", f"{how}, IoU >= {IOU:g}", on, f"{score.found / score.shapes:.1%}"),
        Row("found where nothing is", how, on, f"{score.false / count:.3f} a picture"),
    ]


def ip_adapter_rows(count: int, sampler: str) -> list[Row]:
    """Whether what pictures show comes back without a word, with words that say nothing, and without the picture."""
    painter = shown_painter(sampler, STEPS, GUIDANCE)
    size, scenes = SIZES[0], held_out_scenes(count)
    references = [draw(scene, *size, random.Random(f"shown {number}")) for number, scene in enumerate(scenes)]
    rows = []
    for prompt, scale in (("", 1.0), (NEUTRAL, 1.0), ("", 0.0)):
        found: list[SceneScore] = []
        for start in track(range(0, count, BATCH), f"{prompt!r}, scale {scale:g}", console=CONSOLE):
            part = slice(start, min(count, start + BATCH))
            seeds = list(range(part.start, part.stop))
            pictures = painter([prompt] * len(seeds), references[part], scale, size, seeds)
            found += [score_image(picture, scene) for picture, scene in zip(pictures, scenes[part], strict=True)]
        words = f'prompt "{prompt}"' if prompt else "no prompt"
        shown = f"scale {scale:g}" if scale else "no reference"
        how = f"{words}, {shown}; {painter.how}, {STEPS} steps, guidance {GUIDANCE:g}"
        objects = [item for score in found for item in score.objects]
        on, each = f"{count} scenes, {size[1]}x{size[0]}", f"their {len(objects)} shapes"
        rows += [
            Row("background, colours, shapes all right", how, on, _percent([score.named for score in found])),
            Row("background right", how, on, _percent([score.background for score in found])),
            Row("colour of a shape right", how, each, _percent([item.color for item in objects])),
            Row("shape right", how, each, _percent([item.shape for item in objects])),
        ]
    return rows


def painter_rows(name: str, prompts: int, other_prompts: int, sampler: str) -> list[Row]:
    rows = []
    painter = painter_of(name, sampler, STEPS, GUIDANCE)
    how = f"{painter.how}, {STEPS} steps, guidance {GUIDANCE:g}"
    for size in SIZES:
        wanted = held_out_prompts(prompts if size == SIZES[0] else other_prompts)
        started = time.perf_counter()
        found = score(painter, wanted, size, style_of(name))
        seconds = (time.perf_counter() - started) / len(wanted)
        on = f"{len(wanted)} prompts, {size[1]}x{size[0]}"
        rows += [
            Row("background, colours, shapes all right", how, on, _percent([s.named for s in found])),
            Row("and textures", how, on, _percent([s.right for s in found])),
            Row("and sizes and places", how, on, _percent([s.exact for s in found])),
        ]
        if size == SIZES[0]:
            single = [s.right for s in found if len(s.objects) == 1]
            pairs = [s.right for s in found if len(s.objects) == 2]
            rows += [
                Row("the same and textures, one shape", how, f"{len(single)} prompts", _percent(single)),
                Row("the same and textures, two shapes", how, f"{len(pairs)} prompts", _percent(pairs)),
                Row("seconds a picture", f"{torch.get_num_threads()} threads, batch {BATCH}", on, f"{seconds:.2f}"),
            ]
    passed = passing(painter, min(prompts, HELD_OUT))
    rows.append(
        Row(
            "of unknown things, let pass by demo-nsfw",
            how,
            f"{len(passed)} prompts, {SIZES[0][1]}x{SIZES[0][0]}",
            _percent(passed),
        )
    )
    return rows


def passing(painter: Painter, count: int) -> list[bool]:
    """Whether the classifier lets the pictures of prompts pass whose words the world of shapes hasn't."""
    prompts = unknown_prompts(count)
    parts = [range(start, min(count, start + BATCH)) for start in range(0, count, BATCH)]
    pictures = [picture for part in parts for picture in painter([prompts[n] for n in part], SIZES[0], list(part))]
    return [label == LABELS[0] for label in classify(path("demo-nsfw"), pictures)]


def _percent(flags: list[bool]) -> str:
    return f"{np.mean(flags):.1%}"


def _keep(folder: Path, rows: list[Row]) -> None:
    kept = [{"what": row.what, "how": row.how, "on": row.on, "value": row.value} for row in rows]
    (folder / SCORES).write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
