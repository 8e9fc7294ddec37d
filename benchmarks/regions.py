"""How often two objects have their colours at their places, by a prompt alone and with regions.

    python -m benchmarks.regions                    # 100 held-out scenes, several values of base_weight
    python -m benchmarks.regions --scenes 20 --base-weights 0.2

demo-sd15 draws scenes of two objects that it was never trained on, by 12 steps of DPM++ 2M at guidance 5. The prompt
names both objects and their places; with regions it is the same, and each half of the image has its object's prompt.
`demo_models.scoring` reads the pictures. Sizes don't count: a prompt for one object draws it larger than one for two.
"""

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.text_table import text_table
from demo_models.captions import PLACE_WORDS, caption
from demo_models.scenes import Scene, held_out_scenes
from demo_models.scoring import SceneScore, score_image
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptSchedule
from deployments.engine.types import DenoiseRequest, DenoiseResult, Pixels, Region, TextEncodingRequest

_CHECKPOINT = CheckpointSpec(family="sd15", source="package:demo_models/demo-sd15")
_SIZE, _STEPS, _AT_ONCE = 256, 12, 4
_SCENES_OF_A_SEED = 20


@dataclass(frozen=True, slots=True)
class Way:
    """How a scene is asked for: by the prompt alone (None), or with regions beside a prompt of this weight."""

    base_weight: float | None

    def __str__(self) -> str:
        return "prompt" if self.base_weight is None else f"regions, base_weight {self.base_weight:g}"


def scenes_of_two(count: int) -> list[Scene]:
    """Held-out scenes of two objects, one seed after the other."""
    scenes: list[Scene] = []
    seed = 0
    while len(scenes) < count:
        pairs = [scene for scene in held_out_scenes(4 * _SCENES_OF_A_SEED, seed) if len(scene.objects) == 2]
        scenes += pairs[:_SCENES_OF_A_SEED]
        seed += 1
    return scenes[:count]


def prompt_of(scene: Scene, number: int) -> str:
    """A caption that says where the objects are."""
    return caption(scene, random.Random(f"regions {number}"))


def region_prompts(scene: Scene) -> list[str]:
    """What each half shows: its object, where it stands in the whole image, as the model predicts for that."""
    return [
        f"a {item.color} {item.shape} {PLACE_WORDS[item.place][0]}, {scene.background} background"
        for item in scene.objects
    ]


def halves(scene: Scene) -> list[Pixels]:
    """The masks of both objects' halves."""
    masks = []
    for number in range(2):
        mask = np.zeros((_SIZE, _SIZE), np.uint8)
        half = slice(number * _SIZE // 2, (number + 1) * _SIZE // 2)
        mask[half if scene.vertical else slice(None), slice(None) if scene.vertical else half] = 255
        masks.append(mask)
    return masks


class Drawer:
    """demo-sd15 in an engine of its own."""

    def __init__(self, threads: int) -> None:
        self._encoder = PromptEncoder(
            {"sd15": load_text_encoders(_CHECKPOINT, torch.device("cpu"), torch.float32)}, batch=4
        )
        self._engine = Engine(EngineSettings(device="cpu", cpu_threads=threads, max_rows=16), {"sd15": _CHECKPOINT})

    def scores(self, scenes: Sequence[Scene], way: Way) -> list[SceneScore]:
        """Draw each scene, with its number as the seed, and read the pictures."""
        return asyncio.run(self._scores(scenes, way))

    async def _scores(self, scenes: Sequence[Scene], way: Way) -> list[SceneScore]:
        places = asyncio.Semaphore(_AT_ONCE)

        async def score(number: int, scene: Scene) -> SceneScore:
            async with places:
                return score_image(await self._draw(number, scene, way), scene)

        return await asyncio.gather(*(score(number, scene) for number, scene in enumerate(scenes)))

    async def _draw(self, number: int, scene: Scene, way: Way) -> Pixels:
        texts = TextEncodingRequest("sd15", prompt_of(scene, number), "")
        request = DenoiseRequest(
            lane_id=f"{number}",
            checkpoint="sd15",
            seed=number,
            steps=_STEPS,
            guidance_scale=5.0,
            width=_SIZE,
            height=_SIZE,
            sampler="dpmpp_2m",
        )
        if way.base_weight is not None:
            texts = replace(texts, regions=tuple(region_prompts(scene)))
            request = replace(
                request,
                regions=tuple(Region(mask) for mask in halves(scene)),
                composed_prompts=3,
                base_weight=way.base_weight,
            )
        schedule = PromptSchedule.of(texts)
        embeddings = dict(zip(schedule.texts, self._encoder.encode(schedule.texts), strict=True))
        events = [event async for event in self._engine.stream(request, schedule.conditioning(embeddings))]
        match events[-1]:
            case DenoiseResult(image=np.ndarray() as image):
                return image
        raise RuntimeError(f"image {number} ended with {events[-1]!r}")

    def __enter__(self) -> "Drawer":
        self._engine.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._engine.stop()


def table(scores: dict[Way, list[SceneScore]]) -> str:
    """A row for each way: in how many scenes anything of a kind is wrong."""
    count = len(next(iter(scores.values())))
    header = [f"of {count} scenes, wrong:", "background", "colours or places", "shapes", "any of these"]
    rows = []
    for way, found in scores.items():
        wrong = (
            sum(not one.background for one in found),
            sum(not all(item.color and item.place for item in one.objects) for one in found),
            sum(not all(item.shape for item in one.objects) for one in found),
            sum(not (one.named and all(item.place for item in one.objects)) for one in found),
        )
        rows.append([str(way), *map(str, wrong)])
    return text_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--base-weights", type=float, nargs="*", default=[0.0, 0.2, 0.5])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    scenes = scenes_of_two(arguments.scenes)
    scores: dict[Way, list[SceneScore]] = {}
    with Drawer(arguments.threads) as drawer:
        for way in (Way(None), *map(Way, arguments.base_weights)):
            scores[way] = drawer.scores(scenes, way)
            print(table(scores), flush=True)


if __name__ == "__main__":
    main()
