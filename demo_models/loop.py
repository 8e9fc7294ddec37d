"""The training loop every stage shares: seeded, resumable, with an average of the weights.

Knows no stage: a stage hands in modules and a function from a step's randomness to a loss. A step draws
all its randomness from (run, seed, step), so an interrupted run ends with the same weights as one that
was not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from demo_models.terminal import CONSOLE

WARM_UP = 50
LAST_RATE = 0.03
"""The share of the learning rate that is left at the end."""


@dataclass(frozen=True, slots=True)
class Run:
    """How long and how a stage trains."""

    name: str
    steps: int
    rate: float
    folder: Path
    seed: int = 0
    device: str = "cpu"
    average: float = 0.997
    checkpoint_every: int = 100
    weight_decay: float = 1e-3

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"


@dataclass(frozen=True, slots=True)
class Step:
    """One step's position and randomness."""

    number: int
    progress: float
    words: random.Random
    noise: torch.Generator


Loss = Callable[[Step], tuple[Tensor, Mapping[str, Tensor]]]
"""From a step to its loss and the figures worth logging."""


def auto_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def rate_at(run: Run, step: int) -> float:
    """Linear warm-up, then a cosine down to LAST_RATE."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / run.steps))
    return run.rate * min(1.0, (step + 1) / WARM_UP) * (cosine * (1 - LAST_RATE) + LAST_RATE)


def step_of(run: Run, number: int) -> Step:
    words = random.Random(f"{run.name} {run.seed} {number}")
    noise = torch.Generator().manual_seed(words.getrandbits(62))
    return Step(number, number / run.steps, words, noise)


def train(run: Run, model: nn.Module, loss_of: Loss, stop_after: int | None = None) -> None:
    """Train `model` in place; it ends holding the averaged weights. `stop_after` interrupts, as a kill would."""
    trained = [part for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=run.rate, betas=(0.9, 0.99), weight_decay=run.weight_decay, fused=True)
    average = [part.detach().clone() for part in trained]
    first = _resume(run, model, optimizer, average)
    model.train()
    log = run.folder / f"{run.name}.log"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=CONSOLE) as bar:
        task = bar.add_task(run.name, total=run.steps, completed=first, figures="")
        started = time.monotonic()
        for number in range(first, run.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(run, number)
            loss, figures = loss_of(step_of(run, number))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            decay = min(run.average, (1 + number) / (10 + number))
            torch._foreach_lerp_(average, [part.detach() for part in trained], 1 - decay)
            done = number + 1
            if done % 20 == 0 or done == run.steps:
                words = " ".join(f"{name} {value.item():.4f}" for name, value in figures.items())
                bar.update(task, completed=done, figures=words)
                with log.open("a") as lines:
                    lines.write(f"{done} {time.monotonic() - started:.0f}s loss {loss.item():.4f} {words}\n")
            if done % run.checkpoint_every == 0 or done in {run.steps, stop_after}:
                _save(run, done, model, optimizer, average)
            if done == stop_after:
                return
    _take(trained, average)
    model.eval()


def averaged(run: Run, model: nn.Module) -> int:
    """Load the averaged weights of the newest checkpoint into `model`; returns its step."""
    state = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    _take([part for part in model.parameters() if part.requires_grad], state["average"])
    model.eval()
    return int(state["step"])


def _take(parts: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for part, value in zip(parts, values, strict=True):
            part.copy_(value)


def _resume(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> int:
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.checkpoint.exists():
        return 0
    state = torch.load(run.checkpoint, map_location=run.device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for kept, value in zip(average, state["average"], strict=True):
        kept.copy_(value)
    return int(state["step"])


def _save(run: Run, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
    }
    partial = run.checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(run.checkpoint)
