"""The demo detector: finds the shapes of the demo's world, so that a detail pass has something to draw over.

Its network is the engine's own (deployments/engine/detection), its pictures are drawn here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor

from demo_models.drawing import STYLES, Box, Picture, draw_boxed
from demo_models.loop import Loss, Step
from demo_models.scenes import COLORS, SHAPES, Scene, any_scene, held_out
from demo_models.terminal import CONSOLE
from demo_models.vae import as_pictures, as_tensor
from deployments.engine.detection.detector import fitted
from deployments.engine.detection.network import STRIDE, GridNetwork

NAME = "demo-shapes"
CLASSES = SHAPES
SIDE = 256
"""At which it looks at a picture, in its upper left corner."""
WIDTHS = (8, 24, 48, 64, 96)
SIZES = ((256, 256), (256, 256), (256, 256), (192, 256), (256, 192), (320, 320), (384, 256), (256, 384))
CELLS = SIDE // STRIDE
BATCH = 12
MOSAICS = 6
"""Of a batch: four pictures at half their size side by side, which teach four times as much at the same cost."""
MOST_SHAPES = 3
DECODED_SHARE = 0.15
"""How many pictures went through the autoencoder, as generated ones do."""
EMPTY_SHARE = 0.04
CORE, RIM = 0.3, 0.5
"""Of a shape's width and height, around its middle: cells that must tell it, and cells around them that may."""
PRIOR = -4.0
"""Logit that every class begins with, as next to all cells are empty."""
NONE = -1
CONFIDENCE = 0.3
"""From which on a shape counts as found, as a detail pass takes it by itself."""


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture, and the box and the number of the class of each of its shapes."""

    picture: Picture
    boxes: list[Box]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Pool:
    """What a detector trains on.

    Attributes:
        pictures: (n, 3, SIDE, SIDE), uint8.
        boxes: of their shapes (n, MOST_SHAPES, 4), in pixels.
        labels: numbers of their classes (n, MOST_SHAPES), NONE where there is no shape.
    """

    pictures: Tensor
    boxes: Tensor
    labels: Tensor


def new_detector() -> GridNetwork:
    network = GridNetwork(WIDTHS, len(CLASSES))
    with torch.no_grad():
        bias = network.head.bias
        assert bias is not None  # noqa: S101  # a convolution has one unless it is told otherwise
        bias[: len(CLASSES)] = PRIOR
        bias[len(CLASSES) :] = 1.0
    return network


def training_pool(vae: AutoencoderKL, count: int, seed: int) -> Pool:
    """Pictures of scenes that aren't held out; each follows from the seed and its number."""
    drawn = (
        _labelled(vae, random.Random(f"detected {seed} {number}"), held=False)
        for number in track(range(count), "pictures to detect in", console=CONSOLE)
    )
    fitted = [_fitted(one) for one in drawn]
    return Pool(*(torch.stack(of_all) for of_all in zip(*fitted, strict=True)))


def held_out_pictures(vae: AutoencoderKL, count: int, seed: str = "held-out") -> list[LabelledPicture]:
    """Pictures of all sizes and styles, each of a scene of its own that is never trained on."""
    return [
        _labelled(vae, random.Random(f"detected {seed} {number}"), held=True)
        for number in track(range(count), "pictures to detect in", console=CONSOLE)
    ]


def detector_loss(network: GridNetwork, pool: Pool, device: str) -> Loss:
    """Of the classes on all cells but the rims, and of the edges on the cores.

    Focal loss (arXiv:1708.02002); how little of the box is right, and how far off its edges are.
    """

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, boxes, classes = _batch(pool, step)
        if step.words.random() < 0.5:
            pixels, boxes = _mirrored(pixels, boxes)
        shade = 0.05 * torch.randn(BATCH, 3, 1, 1, generator=step.noise)
        pixels = (pixels + shade + 0.02 * torch.randn(pixels.shape, generator=step.noise)).clamp(0, 1)
        logits, edges = network(pixels.to(device, memory_format=torch.channels_last))
        labels, wanted, counts = (part.to(device) for part in targets(boxes, classes))
        told = labels.sum(1, keepdim=True) > 0
        focal = _focal(logits, labels)[counts.expand_as(labels)].sum() / told.sum().clamp(min=1)
        found, true = (part.movedim(1, -1)[told[:, 0]] for part in (edges, wanted))
        if not len(true):
            return focal, {"classes": focal.detach()}
        overlap = _overlap(found, true)
        off = (found.log() - true.log()).abs().mean()
        figures = {"classes": focal.detach(), "overlap": overlap.mean().detach()}
        return focal + (1 - overlap).mean() + off, figures

    return loss_of


def targets(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the cells of pictures should tell.

    Args:
        boxes: (n, shapes, 4), in pixels.
        labels: (n, shapes).

    Returns:
        The classes (n, classes, CELLS, CELLS), 0 or 1; the distances to the edges (n, 4, CELLS, CELLS) in cells, 1
        where there is no shape; and whether a cell's classes count (n, 1, CELLS, CELLS).
    """
    count = len(boxes)
    classes = torch.zeros(count, len(CLASSES), CELLS, CELLS)
    edges = torch.ones(count, 4, CELLS, CELLS)
    counts = torch.ones(count, 1, CELLS, CELLS, dtype=torch.bool)
    middles = torch.arange(CELLS) + 0.5
    for number in range(count):
        shapes = zip((boxes[number] / STRIDE).tolist(), labels[number].tolist(), strict=True)
        for (left, top, right, bottom), label in shapes:
            if label == NONE:
                continue
            across = (middles - (left + right) / 2).abs() / (right - left)
            down = (middles - (top + bottom) / 2).abs() / (bottom - top)
            from_middle = torch.maximum(across[None], down[:, None])
            core = from_middle <= max(CORE / 2, float(from_middle.min()))
            counts[number, 0][(from_middle <= RIM / 2) & ~core] = False
            classes[number, label][core] = 1.0
            distances = (
                (middles - left)[None].expand(CELLS, CELLS),
                (middles - top)[:, None].expand(CELLS, CELLS),
                (right - middles)[None].expand(CELLS, CELLS),
                (bottom - middles)[:, None].expand(CELLS, CELLS),
            )
            for edge, distance in enumerate(distances):
                edges[number, edge][core] = distance[core].clamp(min=0.1)
    return classes, edges, counts


def _batch(pool: Pool, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (BATCH, 3, SIDE, SIDE), 0..1, some of them mosaics, with the boxes and classes of their shapes."""
    plain, parts = BATCH - MOSAICS, 4 * MOSAICS
    chosen = torch.randint(len(pool.pictures), (plain + parts,), generator=step.noise)
    pixels, boxes, labels = pool.pictures[chosen].float() / 255, pool.boxes[chosen], pool.labels[chosen]
    quarters = F.avg_pool2d(pixels[plain:], 2).unflatten(0, (MOSAICS, 2, 2))
    mosaics = quarters.permute(0, 3, 1, 4, 2, 5).reshape(MOSAICS, 3, SIDE, SIDE)
    half = SIDE / 2
    offsets = torch.tensor([[left, top, left, top] for top in (0.0, half) for left in (0.0, half)])
    moved = boxes[plain:].unflatten(0, (MOSAICS, 4)) / 2 + offsets[None, :, None]
    more = 3 * MOST_SHAPES
    return (
        torch.cat([pixels[:plain], mosaics]),
        torch.cat([F.pad(boxes[:plain], (0, 0, 0, more)), moved.flatten(1, 2)]),
        torch.cat([F.pad(labels[:plain], (0, more), value=NONE), labels[plain:].reshape(MOSAICS, -1)]),
    )


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Of each cell and class."""
    right = torch.where(wanted > 0, logits.sigmoid(), 1 - logits.sigmoid())
    return (1 - right) ** 2 * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def _overlap(found: Tensor, true: Tensor) -> Tensor:
    """Of boxes around the same middle (n, 4), as distances: what they have in common, as a share of their union."""
    sides = torch.minimum(found, true)
    common = (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])
    area = [(one[:, 0] + one[:, 2]) * (one[:, 1] + one[:, 3]) for one in (found, true)]
    return common / (area[0] + area[1] - common)


def _mirrored(pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = boxes.unbind(-1)
    return pixels.flip(-1), torch.stack([SIDE - right, top, SIDE - left, bottom], -1)


def _labelled(vae: AutoencoderKL, rng: random.Random, *, held: bool) -> LabelledPicture:
    """A picture of a scene that is held out, or of one that isn't; some training pictures show nothing."""
    size = rng.choice(SIZES)
    if not held and rng.random() < EMPTY_SHARE:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.choice([0, 4, 20]), (*size, 3))
        return LabelledPicture((noise + rng.choice(list(COLORS.values()))).clip(0, 255).astype(np.uint8), [], [])
    scene = any_scene(rng)
    while held_out(scene) != held:
        scene = any_scene(rng)
    picture, boxes = draw_boxed(scene, *size, rng, rng.choice(STYLES))
    if rng.random() < DECODED_SHARE:
        with torch.inference_mode():
            picture = as_pictures(vae.decode(vae.encode(as_tensor([picture])).latent_dist.mean).sample)[0]
    return LabelledPicture(picture, boxes, _labels(scene))


def _labels(scene: Scene) -> list[int]:
    return [CLASSES.index(item.shape) for item in scene.objects]


def _fitted(labelled: LabelledPicture) -> tuple[Tensor, Tensor, Tensor]:
    """A picture as the engine shows it to the network, with its boxes and labels there."""
    square = fitted(labelled.picture, SIDE)
    boxes, labels = torch.zeros(MOST_SHAPES, 4), torch.full((MOST_SHAPES,), NONE)
    if labelled.boxes:
        boxes[: len(labelled.boxes)] = torch.tensor(labelled.boxes) * SIDE / max(labelled.picture.shape)
        labels[: len(labelled.labels)] = torch.tensor(labelled.labels)
    return torch.from_numpy(square).permute(2, 0, 1).contiguous(), boxes, labels
