"""The demo's image encoder: CLIP's vision model in small, which sees a picture as the text encoder reads its caption.

Its projection learns to give the scene away, and to be the text encoder's state behind such a caption's end. So an
IP-Adapter can begin with the keys and values that the UNet has for text.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo_models.captions import caption
from demo_models.drawing import STYLES, Picture, draw
from demo_models.loop import Loss, Step
from demo_models.scenes import Scene, training_scene
from demo_models.text_encoders import QUESTIONS, WIDTH, answers, tokens

SIDE, PATCH = 64, 16
CHANNELS, LAYERS, HEADS = 128, 4, 4
BATCH, READ = 64, 16
"""Pictures of a step, and those of them whose captions are read, too."""
SHAPES = ((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE * 4 // 3), (SIDE * 4 // 3, SIDE))
"""Heights and widths of the drawings, of which it sees the square in the middle."""
BEHIND = 8
"""How many tokens behind a caption's end the text encoder's state is taken."""


class Seeing(nn.Module):
    """An image encoder, with linear answerers of the text encoders' questions that only training needs.

    One reads the projection. The others read all patches of each layer, without which shapes are learned late.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=CHANNELS,
                intermediate_size=4 * CHANNELS,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                image_size=SIDE,
                patch_size=PATCH,
                projection_dim=WIDTH,
                hidden_act="quick_gelu",
                attn_implementation="eager",  # whose way back takes a third of the time on a CPU
            )
        )
        self.head = nn.Linear(WIDTH, sum(QUESTIONS))
        patches = CHANNELS * (SIDE // PATCH) ** 2
        self.of_patches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(CHANNELS), nn.Flatten(), nn.Linear(patches, sum(QUESTIONS)))
            for _ in range(LAYERS)
        )
        with torch.no_grad():  # CLIP's own start is too narrow for so short a training
            for name, part in self.encoder.named_parameters():
                if "embedding" in name and "patch" not in name:
                    part.normal_(0, 0.2)
                elif "visual_projection" in name:
                    part.normal_(0, CHANNELS**-0.5)


def processor() -> CLIPImageProcessorPil:
    """What a picture goes through before the encoder sees it, as the engine has it."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)


def encoder_input(pictures: list[Picture]) -> Tensor:
    """(n, 3, SIDE, SIDE), of pictures of any sizes."""
    found: Tensor = processor()(pictures, return_tensors="pt").pixel_values
    return found


def seeing_loss(seeing: Seeing, reader: CLIPTextModel, tokenizer: CLIPTokenizer, device: str) -> Loss:
    """Of the questions, and how far the projection is from what the text encoder makes of a caption."""
    norm = final_norm(reader)

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = [training_scene(step.words) for _ in range(BATCH)]
        pictures = [seen(scene, step.words) for scene in scenes]
        pixels = encoder_input(pictures) + 0.04 * torch.randn(BATCH, 3, SIDE, SIDE, generator=step.noise)
        ids = tokens(tokenizer, [caption(scene, step.words) for scene in scenes[:READ]]).to(device)
        with torch.no_grad():
            ends = (ids == tokenizer.eos_token_id).int().argmax(1)
            states = reader(input_ids=ids).last_hidden_state[torch.arange(len(ids)), ends + BEHIND]
            wanted = (states - norm.bias) / norm.weight
        with torch.autocast(device, torch.bfloat16):
            out = seeing.encoder(pixels.to(device), output_hidden_states=True)
            answered = [
                head(states[:, 1:]).float()
                for head, states in zip(seeing.of_patches, out.hidden_states[1:], strict=True)
            ]
        embeds = out.image_embeds.float()
        truth = torch.tensor([answers(scene) for scene in scenes], device=device)
        alike = F.mse_loss(embeds[: len(wanted)], wanted)
        loss = alike
        worst = []
        for logits in (seeing.head(embeds), *answered):
            shares = []
            for question, of_question in enumerate(logits.split(QUESTIONS, dim=1)):
                loss = loss + F.cross_entropy(of_question, truth[:, question])
                shares.append((of_question.argmax(1) == truth[:, question]).float().mean())
            worst.append(torch.stack(shares).min())
        return loss, {"alike": alike.detach(), "worst": worst[0], "patches": worst[-1]}

    return loss_of


def final_norm(reader: CLIPTextModel) -> nn.LayerNorm:
    """The last layer of a text encoder, which transformers has at one of two places."""
    name = next(name for name, _ in reader.named_modules() if name.endswith("final_layer_norm"))
    norm = reader.get_submodule(name)
    assert isinstance(norm, nn.LayerNorm)  # noqa: S101
    return norm


def seen(scene: Scene, rng: random.Random) -> Picture:
    """A drawing of a scene, at about the size that the encoder sees it in."""
    return draw(scene, *rng.choice(SHAPES), rng, STYLES[0])
