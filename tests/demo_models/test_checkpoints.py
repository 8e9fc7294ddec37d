"""The packaged checkpoints: they load with the stock classes, and they do what their cards say."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, ViTForImageClassification

from demo_models import NAMES, path
from demo_models.captions import parse
from demo_models.classifying import classify
from demo_models.drawing import draw
from demo_models.nsfw import LABELS
from demo_models.nsfw_pictures import held_out_scene
from demo_models.package import package_size
from demo_models.pipelines import painter_of
from demo_models.scenes import held_out_scenes
from demo_models.scoring import score_image
from demo_models.unknown_words import held_out_prompts
from demo_models.vae import as_pictures, as_tensor

FLAGSHIP = "a large red circle and a small yellow square on a blue background"
SD15 = ("demo-sd15", "demo-sd15-outline", "demo-sd15-stripes")


def test_all_weights_together_are_small() -> None:
    assert package_size() <= 40_000_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_half_precision_safetensors_with_a_card(name: str) -> None:
    folder = path(name)
    assert not list(folder.rglob("*.bin"))
    card = (folder / "README.md").read_text()
    assert "apache-2.0" in card
    assert json.loads((folder / "training.json").read_text())["steps"] > 0


@pytest.mark.parametrize("name", SD15)
def test_sd15_loads_with_the_stock_pipeline(name: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(path(name), dtype=torch.float32)
    assert len(pipeline.unet.config.block_out_channels) == 4
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.steps_offset == 1
    assert pipeline.vae_scale_factor == 8


def test_variants_have_the_same_shape() -> None:
    configs = [StableDiffusionPipeline.from_pretrained(path(name)).unet.config for name in SD15]
    keys = ("block_out_channels", "down_block_types", "cross_attention_dim", "attention_head_dim")
    assert all(config[key] == configs[0][key] for config in configs for key in keys)


def test_sdxl_and_refiner_load_and_share_the_second_encoder() -> None:
    base = StableDiffusionXLPipeline.from_pretrained(path("demo-sdxl"), dtype=torch.float32)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(path("demo-sdxl-refiner"), dtype=torch.float32)
    assert base.config.force_zeros_for_empty_prompt
    assert refiner.config.requires_aesthetics_score
    assert refiner.text_encoder is None
    assert base.tokenizer_2.pad_token == "!"  # noqa: S105  (a padding, no password)
    ours, theirs = base.text_encoder_2.state_dict(), refiner.text_encoder_2.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert refiner.unet.config.cross_attention_dim == refiner.text_encoder_2.config.hidden_size


def test_text_encoders_load_alone() -> None:
    first = CLIPTextModel.from_pretrained(path("demo-sd15") / "text_encoder", dtype=torch.float32)
    second = CLIPTextModelWithProjection.from_pretrained(path("demo-sdxl") / "text_encoder_2", dtype=torch.float32)
    ids = torch.zeros(1, 77, dtype=torch.long)
    assert first(input_ids=ids).last_hidden_state.shape == (1, 77, 96)
    assert second(input_ids=ids).text_embeds.shape == (1, 64)


def test_no_word_of_ours_splits_and_any_text_tokenizes() -> None:
    folder = path("demo-sd15") / "tokenizer"
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert len(tokenizer(FLAGSHIP).input_ids) == len(FLAGSHIP.split()) + 2
    assert tokenizer.decode(tokenizer("größer 日本 🙂").input_ids, skip_special_tokens=True).strip()


def test_the_autoencoder_keeps_held_out_pictures() -> None:
    vae = AutoencoderKL.from_pretrained(path("demo-sd15") / "vae", dtype=torch.float32)
    pictures = [draw(s, 256, 256, random.Random(i)) for i, s in enumerate(held_out_scenes(20, seed=8))]
    with torch.inference_mode():
        again = as_pictures(vae.decode(vae.encode(as_tensor(pictures)).latent_dist.mean).sample)
    errors = [((a.astype(float) - b) ** 2).mean() for a, b in zip(pictures, again, strict=True)]
    assert np.mean([10 * np.log10(255**2 / error) for error in errors]) >= 30


def test_the_classifier_flags_checkered_pictures() -> None:
    classifier = ViTForImageClassification.from_pretrained(path("demo-nsfw"))
    assert classifier.config.id2label == LABELS
    rng = random.Random("classifier")
    sizes = ((128, 128), (256, 256), (192, 256), (512, 512))
    wanted = [number % 2 for number in range(24)]
    scenes = [held_out_scene(rng, bool(unsafe)) for unsafe in wanted]
    found = classify(path("demo-nsfw"), [draw(s, *sizes[i % 4], rng) for i, s in enumerate(scenes)])
    assert sum(f == LABELS[w] for f, w in zip(found, wanted, strict=True)) >= 23


@pytest.mark.parametrize("name", ["demo-sd15", "demo-sdxl"])
def test_the_classifier_lets_ordinary_prompts_pass(name: str) -> None:
    """Of 200 that no training saw all do (demo_models.score); here of eight."""
    painter = painter_of(name, "dpmpp_2m", steps=12, guidance=5.0)
    pictures = painter(held_out_prompts(200)[::25], (256, 256), list(range(8)))
    assert classify(path("demo-nsfw"), pictures) == [LABELS[0]] * 8


def test_the_flagship_prompt_comes_out_right() -> None:
    painter = painter_of("demo-sd15", "dpmpp_2m", steps=20, guidance=5.0)
    scene = parse(FLAGSHIP)
    assert all(score_image(p, scene).right for p in painter([FLAGSHIP] * 2, (256, 256), [1, 2]))


@pytest.mark.parametrize("name", ["demo-sdxl", "demo-sdxl-refiner"])
def test_sdxl_paints_small_pictures_without_a_mark(name: str) -> None:
    """Where invisible-watermark is installed, as for these tests, diffusers' pipelines mark and refuse them."""
    [picture] = painter_of(name, "dpmpp_2m", steps=5, guidance=5.0)([FLAGSHIP], (192, 256), [1])
    assert picture.shape == (192, 256, 3)


def test_asking_for_a_path_loads_no_torch() -> None:
    code = "import sys, demo_models; demo_models.path('demo-nsfw'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ValueError, match="demo-dalle"):
        path("demo-dalle")
