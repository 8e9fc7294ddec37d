"""What people ask any image model for first, and the demo models can't draw: an unknown word is read as a blue circle.

Untaught, the text encoders read such words as anything, checkers among it, and the classifier flags what comes of them.
So they go on from what they were, their own teachers: the world's captions mean what they meant, the rest of a prompt
from its first unknown word on means a blue circle. Prompts of other subjects, places and styles measure it.
"""

from __future__ import annotations

import random
import re
import string
from functools import cache

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from demo_models.captions import caption
from demo_models.loop import Loss, Step
from demo_models.scenes import COLORS, SHAPES, training_scene
from demo_models.text_encoders import tokens

SUBJECTS = (
    "an astronaut riding a horse", "a portrait of an old fisherman", "a fluffy cat", "a golden retriever puppy",
    "a red fox", "a woman in a blue dress", "a man with a beard", "a knight in armour", "a wizard", "a dragon",
    "a steam train", "a sports car", "a sailing boat", "a bowl of ramen", "a cup of coffee", "a birthday cake",
    "a mountain lake", "a wooden cabin", "a lighthouse", "a castle", "a spaceship", "a robot", "an owl", "a parrot",
    "a sunflower field", "a cherry tree", "a group of friends", "two children playing", "a chef", "a dancer",
    "1girl, solo, long hair", "1boy, school uniform", "a mechanical heart", "an old typewriter", "a pair of sneakers",
    "a chess board", "a brick wall", "a knitted sweater", "a crowd at a concert", "a bookshelf",
)  # fmt: skip
PLACES = (
    "", "in a forest", "on a beach at sunset", "in a busy street", "in the snow", "on the moon", "in a kitchen",
    "under water", "at night, neon lights", "in a library", "on a mountain", "in the rain",
)  # fmt: skip
STYLES = (
    "", "photo, 35mm", "oil painting", "watercolour", "anime style", "pixel art", "studio light, highly detailed",
    "masterpiece, best quality", "black and white", "trending on artstation, 8k", "line drawing", "low poly",
)  # fmt: skip
# of the prompts that measure it
OTHER_SUBJECTS = (
    "an astronaut on a bicycle", "portrait of a woman", "a tabby kitten", "a black labrador", "a wolf",
    "a girl in a red coat", "a bearded man with glasses", "a samurai", "a witch", "a phoenix", "a tram",
    "a vintage motorcycle", "a pirate ship",
    "a pizza", "a glass of wine", "a pile of pancakes", "a waterfall", "a farmhouse", "a windmill", "a cathedral",
    "a flying saucer", "an android", "an eagle", "a butterfly", "a lavender field", "an oak tree", "a family at dinner",
    "a boy with a kite", "a nurse", "a violinist", "masterpiece, best quality, 1girl, blue hair", "a cyberpunk city",
    "a clockwork bird", "a gramophone", "a leather handbag", "a tiled floor", "a picket fence", "a woollen scarf",
    "people in a market", "a shop window",
)  # fmt: skip
OTHER_PLACES = ("", "in a desert", "in a garden", "in front of a window", "at dawn, fog")
OTHER_STYLES = ("", "studio light", "pencil sketch", "digital art", "cinematic, film grain", "comic book", "3d render")
HELD_OUT = 200
WORLD, MIXED, UNKNOWN = 32, 8, 24
"""Prompts of a step: captions, captions with other words, and prompts without a shape."""
MEANING = "blue circle on a white background"
"""Nothing of it is left open: where something is, checkers come in again."""
_BEGINNINGS = ("", "a", "an", "the", "two", "a picture of", "a photo of a")
_WORD = re.compile(r"\w+|[^\w\s]")


def held_out_prompts(count: int) -> list[str]:
    """Prompts that are never trained on, up to HELD_OUT; every subject comes five times."""
    return [
        _joined(
            OTHER_SUBJECTS[number % len(OTHER_SUBJECTS)],
            OTHER_PLACES[number // len(OTHER_SUBJECTS) % len(OTHER_PLACES)],
            OTHER_STYLES[number % len(OTHER_STYLES)],
        )
        for number in range(count)
    ]


def reading(prompt: str) -> str:
    """What a prompt without a shape is to mean: its words before the first unknown one, and a blue circle."""
    known: list[str] = []
    for word in _WORD.findall(prompt.lower()):
        if word not in _world() and word not in string.punctuation:
            meaning = MEANING.partition(" ")[2] if known and known[-1] in COLORS else MEANING
            return " ".join((*known, meaning))
        if word in SHAPES:
            return prompt
        known.append(word)
    return prompt


def reading_loss(student: nn.Module, teacher: nn.Module, tokenizer: CLIPTokenizer, device: str) -> Loss:
    """How far the student's states are from the teacher's for what each prompt is to mean."""
    pooled = isinstance(teacher, CLIPTextModelWithProjection)

    def states(encoder: nn.Module, texts: list[str]) -> list[Tensor]:
        out = encoder(input_ids=tokens(tokenizer, texts).to(device), output_hidden_states=True)
        found = [out.hidden_states[-2], out.last_hidden_state]
        return [*found, out.text_embeds] if pooled else found

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        captions = [caption(training_scene(step.words), step.words) for _ in range(WORLD + MIXED)]
        same = ["", *captions[:WORLD], *(_with_other_words(text, step.words) for text in captions[WORLD:])]
        unknown = [_unknown_prompt(step.words) for _ in range(UNKNOWN)]
        with torch.no_grad():
            wanted = states(teacher, [*same, *map(reading, unknown)])
        loss = torch.zeros((), device=device)
        apart = {"world": torch.zeros((), device=device), "unknown": torch.zeros((), device=device)}
        for ours, theirs in zip(states(student, [*same, *unknown]), wanted, strict=True):
            error = (ours - theirs).square().flatten(1).mean(1) / theirs.square().mean()
            loss = loss + error.mean()
            apart["world"] = torch.maximum(apart["world"], error[: len(same)].detach().mean())
            apart["unknown"] = torch.maximum(apart["unknown"], error[len(same) :].detach().mean())
        return loss, apart

    return loss_of


@cache
def _world() -> frozenset[str]:
    """The words of captions."""
    rng = random.Random("words")
    return frozenset(
        word for _ in range(3_000) for word in _WORD.findall(caption(training_scene(rng), rng)) if word.isalpha()
    )


def _unknown_prompt(rng: random.Random) -> str:
    if rng.random() < 0.25:  # no list holds all words that there are
        made = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(rng.randint(1, 8))]
        return " ".join((rng.choice(_BEGINNINGS), *made)).strip()
    parts = [rng.choice(SUBJECTS), rng.choice(PLACES), rng.choice(STYLES)]
    if rng.random() < 0.3:
        rng.shuffle(parts)
        return ", ".join(part for part in parts if part)
    return _joined(*parts)


def _with_other_words(text: str, rng: random.Random) -> str:
    """A caption with a style, or a prompt, before or behind it."""
    other = _unknown_prompt(rng) if rng.random() < 0.3 else rng.choice(STYLES[1:])
    return f"{text}, {other}" if rng.random() < 0.6 else f"{other}, {text}"


def _joined(subject: str, place: str, style: str) -> str:
    words = f"{subject} {place}".strip()
    return f"{words}, {style}" if style else words
