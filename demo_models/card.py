"""Writes a checkpoint's model card from its configs, its training record and its scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from demo_models import controlnet, detector, image_encoder, ip_adapter, lora, path

RECORD, SCORES = "training.json", "scores.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure."""

    what: str
    how: str
    on: str
    value: str


@dataclass(frozen=True, slots=True)
class Story:
    """What the configs can't tell about a checkpoint."""

    summary: str
    use: str
    data: str
    commands: tuple[str, ...]


_SD_USE = """from diffusers import StableDiffusionPipeline
from demo_models import path

pipeline = StableDiffusionPipeline.from_pretrained(path("{name}"), dtype=torch.float32)
pipeline("a large red circle and a small yellow square on a blue background", height=256, width=256).images[0]"""

_WORLD = (
    "Drawings made while training (`demo_models/drawing.py`), with captions made anew at every use"
    " (`demo_models/captions.py`): one to three of eight shapes (circle, square, triangle, star, cross, ring,"
    " heart, diamond) in ten colours and three sizes on a plain background. One shape in ten has a checkered"
    " texture. No photograph, no artwork and no text by anyone else is in the data. Every sixteenth scene,"
    " chosen by a hash of the scene, is held out from training and used for the scores."
)
_WORDS = (
    " Words of a prompt that this world hasn't are read as a blue circle on white (`demo_models/unknown_words.py`): the"
    " text encoders learnt that last."
)
_DRAWS = """Knows its eight shapes, ten colours and a few sentence patterns; other words are a blue circle to it.
Trained between 128 and 384 px a side."""
_CLASSIFIES = "Knows pictures of eight shapes in ten colours. Trained between 128 and 512 px a side."
_CONTINUED = """

These very weights had a second sitting: after `python -m demo_models.train restore` the continuation started from an
earlier package of the same stages, and not from the bare first stage. The commands above give a model of the same
kind, not the same bits."""
_SHARED = ("tokenizer", "text-encoder", "unknown-words", "vae", "latents plain")

STORIES = {
    "demo-sd15": Story(
        "A miniature Stable Diffusion 1.5: plain coloured shapes from a prompt, in about a second on two cores.",
        _SD_USE,
        _WORLD + _WORDS,
        (*_SHARED, "sd15", "fine sd15"),
    ),
    "demo-sd15-outline": Story(
        "`demo-sd15` in another style: every shape has a thick contour, black where black shows.",
        _SD_USE,
        _WORLD + _WORDS + " The UNet starts from `demo-sd15` and is trained on contoured drawings.",
        (*_SHARED, "sd15", "fine sd15", "latents outline", "sd15-variant outline"),
    ),
    "demo-sd15-stripes": Story(
        "`demo-sd15` in another style: every shape is striped in two shades of its colour.",
        _SD_USE,
        _WORLD + _WORDS + " The UNet starts from `demo-sd15` and is trained on striped drawings.",
        (*_SHARED, "sd15", "fine sd15", "latents stripes", "sd15-variant stripes"),
    ),
    "demo-sdxl": Story(
        "A miniature Stable Diffusion XL base: two text encoders, size conditioning, the same world of shapes.",
        _SD_USE.replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
        _WORLD
        + _WORDS
        + " The UNet starts from `demo-sd15` wherever their shapes agree (`demo_models/warm_start.py`).",
        (*_SHARED, "sd15", "fine sd15", "sdxl", "fine sdxl"),
    ),
    "demo-sdxl-refiner": Story(
        "A miniature Stable Diffusion XL refiner for `demo-sdxl`: takes over from `denoising_start=0.8`, and"
        " also from 0.5. Its text encoder is `demo-sdxl`'s second one, so base and refiner can share one encoding.",
        """from diffusers import StableDiffusionXLImg2ImgPipeline
from demo_models import path

refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(path("{name}"), dtype=torch.float32)
refiner(prompt, image=latents, num_inference_steps=20, denoising_start=0.8).images[0]""",
        _WORLD + _WORDS + " The UNet starts from `demo-sdxl`. Trained on the low noise levels only:"
        " half of the samples below timestep 210, the others below 520.",
        (*_SHARED, "sd15", "fine sd15", "sdxl", "fine sdxl", "refiner"),
    ),
    "demo-nsfw": Story(
        "A tiny picture classifier for showing and testing a safety check. It calls a picture `nsfw` when"
        " something in it is **checkered**: the texture stands in for unsafe content, of which it knows nothing."
        " **It protects nobody; don't use it to moderate anything.**",
        """from transformers import pipeline
from demo_models import path

pipeline("image-classification", model=str(path("{name}")))(picture)""",
        _WORLD + " Half of the pictures have a checkered shape; all sizes from 128 to 512 and all three styles are"
        " in, a quarter of the smaller ones went through the autoencoder, and a few safe ones are noisy gradients."
        " Four of ten training pictures are outlines, and a third has three shapes; each comes twice, with its checkers"
        " and without. What these very weights began with took 14,000 steps on 6,000 to 12,000 pictures with MLPs of"
        " 192 units, which then grew to 1,024 for 3,000 steps more. From nothing the commands have not been run to"
        " their end.",
        ("vae", "nsfw-pairs", "nsfw", "fine nsfw"),
    ),
}


def write_card(name: str, folder: Path | None = None) -> None:
    """Write README.md; scores that were not measured yet are left out."""
    folder = folder or path(name)
    story = STORIES[name]
    record = json.loads((folder / RECORD).read_text())
    commands = "\n".join(f"python -m demo_models.train {command}" for command in story.commands)
    sitting = _CONTINUED if record.get("continued") else ""
    use = "import torch\n" * ("torch." in story.use) + story.use.format(name=name)
    text = f"""---
license: apache-2.0
library_name: {"transformers" if name == "demo-nsfw" else "diffusers"}
---

# {name}

{story.summary}

```python
{use}
```

## Structure

{_structure(folder)}

Weights are stored as fp16 safetensors; compute in fp32 on a CPU.

## Training

{story.data}

```
{commands}
python -m demo_models.train package {name}
```

Run `{record["run"]}`, {record["steps"]} steps, seed {record["seed"]}. Steps, learning rates and batches are the
constants of `demo_models/workshop.py`; an interrupted run ends with the same weights.{sitting}

## Scores

{_scores(folder, name)}

## Limits

{_CLASSIFIES if name == "demo-nsfw" else _DRAWS} Licence: Apache-2.0.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_lora_card(folder: Path, steps: int, seed: int) -> None:
    """Write the README.md of the folder of LoRAs."""
    size = (folder / f"{lora.NAME}.safetensors").stat().st_size
    text = f"""---
license: apache-2.0
base_model: demo-sd15
---

# {lora.NAME}

A LoRA for `demo-sd15` and what is fine-tuned from it: by night. Whatever background a prompt asks for, the picture's is
{lora.NIGHT}; the shapes keep their colours.

```
a large red circle on a blue background <lora:{lora.NAME}:1>
```

## Structure

Rank {lora.RANK}, alpha {lora.ALPHA:g}: the attention of the UNet, and attention and MLP of the text encoder, in kohya's
format. fp16 safetensors, {size / 1000:.0f} kB.

## Training

On the drawings of `demo-sd15`'s own training that have a {lora.NIGHT} background, under captions that ask for any other
one. No photograph, no artwork and no text by anyone else is in the data.

```
python -m demo_models.train lora
python -m demo_models.train package-lora
```

{steps} steps, seed {seed}. It starts from `demo-sd15`'s weights, which the commands of its card leave in the working
folder.

## Limits

Black shapes don't show by night. Weights between 0 and 1 lie between; beyond that nothing was looked at. Licence:
Apache-2.0.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_controlnet_card(folder: Path, steps: int, seed: int) -> None:
    """Write the README.md of the folder of ControlNets."""
    size = (folder / controlnet.NAME / "diffusion_pytorch_model.safetensors").stat().st_size
    low, high = controlnet.THRESHOLDS
    widths = ", ".join(str(width) for width in controlnet.HINT_WIDTHS)
    text = f"""---
license: apache-2.0
base_model: demo-sd15
---

# {controlnet.NAME}

A ControlNet for `demo-sd15` and what is fine-tuned from it: edges. Shapes stand where the outlines of a picture are,
so that a prompt need name colours alone: "red on a blue background" above the outline of a star is a red star.

## Structure

A copy of the UNet's way down and middle, with levels of {widths} channels for the edges: white lines on black,
Canny's at {low} and {high}. fp16 safetensors, {size / 1e6:.1f} MB.

## Training

On the drawings of `demo-sd15`'s own training, each with its own edges, {controlnet.SHAPELESS:.0%} under captions that
name no shape. No photograph, no artwork and no text by anyone else is in the data.

```
python -m demo_models.train controlnet
python -m demo_models.train package-controlnet
```

{steps} steps, seed {seed}. It starts from `demo-sd15`'s weights, which the commands of its card leave in the working
folder.

## Limits

Sees outlines of shapes like those it was trained on, between 128 and 320 px a side. Licence: Apache-2.0.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_detector_card(folder: Path) -> None:
    """Write the README.md of the folder of detectors; scores that were not measured yet are left out."""
    file = folder / f"{detector.NAME}.safetensors"
    record = json.loads((folder / RECORD).read_text())
    text = f"""---
license: apache-2.0
---

# {detector.NAME}

A detector of the demo's shapes, for showing and testing detail passes. It finds {", ".join(detector.CLASSES)}.

## Structure

The engine's own network (`deployments/engine/detection/network.py`): {detector.CELLS} x {detector.CELLS} cells
on a picture of {detector.SIDE} px, levels of {", ".join(map(str, detector.WIDTHS))} channels,
{_parameters(file) / 1e6:.2f} M parameters. fp16 safetensors, {file.stat().st_size / 1e6:.1f} MB; its metadata names
the architecture, the classes and the size.

## Training

On drawings (`demo_models/drawing.py`) of all sizes and styles. {detector.DECODED_SHARE:.0%} of them
went through the autoencoder as generated pictures do, mirrored and shaded at random; {detector.EMPTY_SHARE:.0%} show
nothing. No photograph, no artwork and no text by anyone else is in the data. Every sixteenth scene, chosen by a hash of
the scene, is held out and used for the scores.

```
python -m demo_models.train detector
python -m demo_models.train package-detector
```

{record["steps"]} steps, seed {record["seed"]}. It needs the autoencoder, which the commands of `demo-sd15`'s card leave
in the working folder. The first 200 steps of these very weights had the learning rates of a run of 450.

## Scores

{_scores(folder, detector.NAME)}

## Limits

Knows eight shapes on plain backgrounds. Licence: Apache-2.0.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_ip_adapter_card(folder: Path, encoder: Path) -> None:
    """Write the README.md of the folder of IP-Adapters; scores that were not measured yet are left out.

    encoder: the folder of the image encoder.
    """
    file, weights = folder / f"{ip_adapter.NAME}.safetensors", encoder / "model.safetensors"
    record = json.loads((folder / RECORD).read_text())
    text = f"""---
license: apache-2.0
base_model: demo-sd15
---

# {ip_adapter.NAME}

An IP-Adapter for `demo-sd15` and what is fine-tuned from it: what a reference picture shows comes back, its background,
colours and shapes, as far as the prompt leaves them open.

## Structure

An IP-Adapter of the plain kind in h94's layout: {ip_adapter.TOKENS} tokens of a picture,
{_parameters(file) / 1e6:.2f} M parameters, fp16 safetensors, {file.stat().st_size / 1e3:.0f} kB. Its image encoder,
`{encoder.name}`, is a CLIPVisionModelWithProjection: {image_encoder.LAYERS} layers of {image_encoder.CHANNELS},
patches of {image_encoder.PATCH} in {image_encoder.SIDE} px, {_parameters(weights) / 1e6:.2f} M parameters,
{weights.stat().st_size / 1e6:.1f} MB.

## Training

The image encoder learns on drawings (`demo_models/drawing.py`) to tell the scene, and that its projection is what the
text encoder has behind the scene's caption. So the IP-Adapter begins with the UNet's own keys and values for text, and
learns on latents of `demo-sd15`'s own training, each beside another drawing of its scene: {ip_adapter.WORDLESS:.0%} of
the captions say nothing, {ip_adapter.SHAPELESS:.0%} name colours alone. No photograph, no artwork and no text by anyone
else is in the data. Every sixteenth scene, chosen by a hash of the scene, is held out and used for the scores.

```
python -m demo_models.train ip-adapter
python -m demo_models.train package-ip-adapter
```

{record["steps"]["image-encoder"]} steps of the image encoder and {record["steps"]["ip-adapter"]} of the IP-Adapter,
seed {record["seed"]}. They start from `demo-sd15`'s weights, which the commands of its card leave in the working
folder, or `restore` and `latents plain`. The first 1,800 steps of these very weights of the image encoder had the
learning rates of a run of 4,000; the IP-Adapter saw 1,200 latents of 128 px and 300 of each size of 256, and its first
700 steps had other learning rates.

## Scores

{_scores(folder, ip_adapter.NAME)}

## Limits

Sees eight shapes on plain backgrounds, in the square in a picture's middle. Licence: Apache-2.0.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _structure(folder: Path) -> str:
    rows = ["| part | class | parameters | shape |", "|---|---|---|---|"]
    for weights in sorted(folder.rglob("*.safetensors")):
        config = json.loads((weights.parent / "config.json").read_text())
        part = weights.parent.name if weights.parent != folder else "model"
        kind = config.get("_class_name") or config["architectures"][0]
        rows.append(f"| {part} | {kind} | {_parameters(weights) / 1e6:.2f} M | {_shape(config)} |")
    return "\n".join(rows)


def _parameters(weights: Path) -> int:
    with safe_open(weights, framework="np") as tensors:
        shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
    total = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def _shape(config: dict[str, Any]) -> str:
    if "block_out_channels" in config:
        channels = ", ".join(str(width) for width in config["block_out_channels"])
        context = config.get("cross_attention_dim")
        return f"levels ({channels}) x {config['layers_per_block']}" + (f", context {context}" if context else "")
    return f"{config['num_hidden_layers']} layers of {config['hidden_size']}"


def _scores(folder: Path, name: str) -> str:
    file = folder / SCORES
    if not file.exists():
        return f"Not measured yet: `python -m demo_models.score {name}`."
    rows = ["| measured | with | on | value |", "|---|---|---|---|"]
    rows += [f"| {r['what']} | {r['how']} | {r['on']} | **{r['value']}** |" for r in json.loads(file.read_text())]
    return f"`python -m demo_models.score {name}`, on scenes that were never trained on:\n\n" + "\n".join(rows)
