"""The training stages, in order, over one working folder: what each starts from and what it leaves there.

Knows no terminal; `train` is the command line over it, `package` turns the folder into checkpoints.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    ViTForImageClassification,
)

from demo_models import (
    conditioning,
    controlnet,
    detector,
    image_encoder,
    ip_adapter,
    latents,
    lora,
    nsfw,
    text_encoders,
    tokenizer,
    unets,
    unknown_words,
    vae,
    warm_start,
)
from demo_models.captions import caption
from demo_models.diffusion import Course, noise_loss
from demo_models.drawing import STYLES, draw
from demo_models.loop import Loss, Run, averaged, train
from demo_models.nsfw_pairs import read_pairs, write_pairs
from demo_models.scenes import training_scene
from deployments.engine.detection.network import GridNetwork

STEPS = {
    "text-encoder": 700,
    "text-encoder-2": 800,
    "text-encoder-fine": 1200,
    "text-encoder-2-fine": 1200,
    "vae": 900,
    "sd15": 1400,
    "sd15-outline": 250,
    "sd15-stripes": 250,
    "sd15-fine": 4800,
    "sdxl": 400,
    "sdxl-fine": 3400,
    "refiner": 500,
    "nsfw": 20000,
    "nsfw-fine": 8000,
    "lora": 400,
    "controlnet": 1600,
    "controlnet-fine": 5000,
    "detector": 300,
    "image-encoder": 1900,
    "ip-adapter": 2000,
}
RATES = {
    "text-encoder": 2e-3,
    "text-encoder-2": 3e-3,
    "text-encoder-fine": 1e-3,
    "text-encoder-2-fine": 1e-3,
    "vae": 2e-3,
    "sd15": 1.5e-3,
    "sd15-outline": 1e-3,
    "sd15-stripes": 1e-3,
    "sd15-fine": 1.2e-3,
    "sdxl": 1.5e-3,
    "sdxl-fine": 1.2e-3,
    "refiner": 1.5e-3,
    "nsfw": 1e-3,
    "nsfw-fine": 4e-4,
    "lora": 3e-3,
    "controlnet": 2e-3,
    "controlnet-fine": 1.5e-3,
    "detector": 2e-3,
    "image-encoder": 1.5e-3,
    "ip-adapter": 3e-3,
}
AVERAGES = {
    "text-encoder": 0.98,
    "text-encoder-2": 0.98,
    "text-encoder-fine": 0.98,
    "text-encoder-2-fine": 0.98,
    "vae": 0.995,
    "nsfw": 0.995,
    "nsfw-fine": 0.995,
    "lora": 0.98,
    "controlnet": 0.98,
    "controlnet-fine": 0.995,
    "detector": 0.99,
    "image-encoder": 0.995,
    "ip-adapter": 0.99,
}
FINE = "-fine"
"""A run that goes on from another's averaged weights, at the sizes that are served."""
VARIANTS = {"sd15-outline": "outline", "sd15-stripes": "stripes"}
VARIANT_LATENTS = 0.2
"""A variant starts from sd15 and needs fewer latents of its own."""
COURSES = {
    "sd15": Course(small_share=0.643),
    "sd15-fine": Course(),
    "sd15-outline": Course(),
    "sd15-stripes": Course(),
    "sdxl": Course(small_share=0.375),
    "sdxl-fine": Course(),
    "refiner": Course(timesteps=520, low_share=0.5, low_timesteps=210),
}
"""In the order of training: each starts from one above it."""
SCALING_PICTURES = 48
"""Of which the spread of the autoencoder's latents is taken."""
LORA_COURSE = Course(batch_pixels=4 * 256 * 256)
CONTROLNET_COURSES = {
    "controlnet": Course(small_share=0.6, batch_pixels=2 * 256 * 256, small_batch=8),
    "controlnet-fine": Course(small_share=0.4, batch_pixels=2 * 256 * 256, small_batch=8),
}
IP_ADAPTER_COURSE = Course(small_share=0.6, batch_pixels=4 * 256 * 256, small_batch=16)
CLASSIFIER_RUNS = ("nsfw", "nsfw-fine")
NSFW_PAIRS = 30_000
"""Pairs of a safe and an unsafe picture."""
DETECTOR_PICTURES = 1_000
"""Drawings that the detector trains on."""
CUDA_BATCH = 8
"""How many times larger batches are on a GPU, which these models are too small to fill otherwise."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where and how to train; `steps`, `count` and `stop_after` cut a stage short."""

    folder: Path
    seed: int = 0
    device: str = "cpu"
    steps: int | None = None
    count: int | None = None
    stop_after: int | None = None

    def run(self, name: str) -> Run:
        return Run(
            name=name,
            steps=self.steps or STEPS[name],
            rate=RATES[name],
            folder=self.folder,
            seed=self.seed,
            device=self.device,
            average=AVERAGES.get(name, 0.997),
        )

    def train(self, name: str, model: torch.nn.Module, loss: Loss) -> bool:
        """Train to the end, or to `stop_after`; says whether the end was reached."""
        train(self.run(name), model, loss, self.stop_after)
        return self.stop_after is None

    def made(self, part: str) -> Path:
        """The folder of a finished part that other stages read."""
        return self.folder / part


def make_tokenizers(shop: Workshop) -> None:
    tokenizer.write_tokenizer(shop.made("tokenizer"), seed=shop.seed)
    tokenizer.write_tokenizer(shop.made("tokenizer_2"), pad="!", seed=shop.seed)


def tokenizers(shop: Workshop) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    first, second = (CLIPTokenizer.from_pretrained(shop.made(name)) for name in ("tokenizer", "tokenizer_2"))
    return first, second


def train_text_encoders(shop: Workshop) -> None:
    first, second = tokenizers(shop)
    torch.manual_seed(shop.seed)
    for name, words, quizzed in (
        ("text-encoder", first, text_encoders.new_text_encoder(first)),
        ("text-encoder-2", second, text_encoders.new_second_text_encoder(second)),
    ):
        quizzed.to(shop.device)
        if shop.train(name, quizzed, text_encoders.quiz_loss(quizzed, words, shop.device)):
            quizzed.encoder.save_pretrained(shop.made(name))


def teach_unknown_words(shop: Workshop) -> None:
    """Go on with both text encoders, which then read unknown words as a shape without checkers."""
    for name, words, teacher in zip(("text-encoder", "text-encoder-2"), tokenizers(shop), encoders(shop), strict=True):
        student = copy.deepcopy(teacher).requires_grad_(True)
        if shop.train(name + FINE, student, unknown_words.reading_loss(student, teacher, words, shop.device)):
            student.save_pretrained(shop.made(name + FINE))


def encoders(shop: Workshop, taught: bool = False) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both text encoders, frozen; those that were taught unknown words on wish, if they were."""
    folders = (shop.made(name) for name in ("text-encoder", "text-encoder-2"))
    if taught:
        folders = (fine if (fine := Path(f"{folder}{FINE}")).exists() else folder for folder in folders)
    of_first, of_second = folders
    first = CLIPTextModel.from_pretrained(of_first, dtype=torch.float32)
    second = CLIPTextModelWithProjection.from_pretrained(of_second, dtype=torch.float32)
    return (
        first.to(shop.device).eval().requires_grad_(False),
        second.to(shop.device).eval().requires_grad_(False),
    )


def train_vae(shop: Workshop) -> None:
    torch.manual_seed(shop.seed)
    coder = vae.new_vae().to(shop.device, memory_format=torch.channels_last)
    if shop.train("vae", coder, vae.vae_loss(coder, shop.device)):
        coder.to("cpu").register_to_config(scaling_factor=_scaling_factor(coder.to("cpu")))
        coder.save_pretrained(shop.made("vae"))


def _scaling_factor(coder: AutoencoderKL) -> float:
    """What brings latents to a standard deviation of one."""
    rng = random.Random("scaling factor")
    pictures = [draw(training_scene(rng), 256, 256, rng, STYLES[0]) for _ in range(SCALING_PICTURES)]
    with torch.inference_mode():
        spread = coder.encode(vae.as_tensor(pictures)).latent_dist.mean.std()
    return round(1 / float(spread), 5)


def autoencoder(shop: Workshop) -> AutoencoderKL:
    coder = AutoencoderKL.from_pretrained(shop.made("vae"), dtype=torch.float32)
    return coder.to(shop.device, memory_format=torch.channels_last).eval().requires_grad_(False)


def write_latents(shop: Workshop, style: str, sides: list[int] | None = None) -> None:
    coder = autoencoder(shop)
    share = 1.0 if style == STYLES[0] else VARIANT_LATENTS
    for size, count in latents.COUNTS.items():
        if not sides or max(size) in sides:
            wanted = shop.count or round(share * count)
            latents.write_latents(coder, shop.folder, style, size, wanted, shop.device)


def new_unet(name: str) -> UNet2DConditionModel:
    if name.removesuffix(FINE) == "sdxl":
        return unets.new_sdxl_unet()
    return unets.new_refiner_unet() if name == "refiner" else unets.new_sd15_unet()


def conditioner(shop: Workshop, name: str) -> conditioning.Conditioner:
    words, readers = tokenizers(shop), encoders(shop)
    if name.removesuffix(FINE) == "sdxl":
        return conditioning.sdxl_conditioner(words, readers, shop.device)
    if name == "refiner":
        return conditioning.refiner_conditioner(words[1], readers[1], shop.device)
    return conditioning.sd15_conditioner(words[0], readers[0], shop.device)


def train_unet(shop: Workshop, name: str) -> None:
    """Train one of COURSES."""
    torch.manual_seed(shop.seed)
    unet = started_unet(shop, name)
    unet.to(shop.device, memory_format=torch.channels_last)
    course = COURSES[name]
    if shop.device != "cpu":
        course = course.scaled(CUDA_BATCH)
    pool = latents.read_latents(shop.folder, VARIANTS.get(name, STYLES[0]))
    shop.train(name, unet, noise_loss(unet, pool, conditioner(shop, name), course, shop.device))


def started_unet(shop: Workshop, name: str) -> UNet2DConditionModel:
    """What a UNet trains from: sd15 from nothing, all others from the one before them."""
    if name.endswith(FINE):
        return trained_unet(shop, name.removesuffix(FINE))
    if name in VARIANTS:
        return trained_unet(shop, finest(shop, "sd15"))
    unet = new_unet(name)
    if name == "sdxl":
        warm_start.start_sdxl(unet, trained_unet(shop, finest(shop, "sd15")), _paired_states(shop))
    elif name == "refiner":
        warm_start.start_refiner(unet, trained_unet(shop, finest(shop, "sdxl")))
    return unet


def _paired_states(shop: Workshop, captions: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """SDXL's and SD 1.5's text states of the same captions."""
    rng = random.Random("paired states")
    texts = [caption(training_scene(rng), rng) for _ in range(captions)]
    with torch.inference_mode():
        wide, narrow = (conditioner(shop, name)(texts, (256, 256), rng).states for name in ("sdxl", "sd15"))
    return wide.cpu().clone(), narrow.cpu().clone()


def finest(shop: Workshop, name: str) -> str:
    """The run's continuation, where there is one."""
    fine = name + FINE
    return fine if fine in STEPS and shop.run(fine).checkpoint.exists() else name


def trained_unet(shop: Workshop, name: str) -> UNet2DConditionModel:
    """The averaged weights of the newest checkpoint, finished or not."""
    unet = new_unet(name)
    averaged(shop.run(name), unet)
    return unet


def write_nsfw_pairs(shop: Workshop) -> None:
    """What the classifier trains on, drawn in as many processes as there are threads to use."""
    count = shop.count or NSFW_PAIRS
    write_pairs(shop.made("vae"), shop.folder / "nsfw-pairs", count, shop.seed, torch.get_num_threads())


def train_classifier(shop: Workshop, name: str) -> None:
    """Train one of CLASSIFIER_RUNS. A continuation starts from the classifier alone: its heads begin anew."""
    torch.manual_seed(shop.seed)
    start = trained_classifier(shop, name.removesuffix(FINE)) if name.endswith(FINE) else nsfw.new_classifier()
    watched = nsfw.Watched(start).to(shop.device)
    pairs = read_pairs(shop.folder / "nsfw-pairs", shop.count or NSFW_PAIRS, shop.seed)
    shop.train(name, watched, nsfw.classifier_loss(watched, pairs, shop.device))


def trained_classifier(shop: Workshop, name: str) -> ViTForImageClassification:
    watched = nsfw.Watched(nsfw.new_classifier())
    averaged(shop.run(name), watched)
    return watched.classifier


def new_lora(shop: Workshop) -> lora.Adapted:
    """The parts of sd15 that it is for, with updates that do nothing yet."""
    torch.manual_seed(shop.seed)
    return lora.Adapted(trained_unet(shop, finest(shop, "sd15")), encoders(shop)[0])


def train_lora(shop: Workshop) -> None:
    adapted = new_lora(shop).to(shop.device)
    pool = latents.read_latents(shop.folder, STYLES[0])
    numbers = {size: lora.night_numbers(len(found), size) for size, found in pool.items()}
    nightly = {size: pool[size][of_size] for size, of_size in numbers.items() if of_size}

    def captioned(number: int, size: latents.Size, rng: random.Random) -> str:
        return lora.night_caption(latents.training_scene_of(numbers[size][number], size), rng)

    reader = conditioning.sd15_conditioner(tokenizers(shop)[0], adapted.text_encoder, shop.device)
    loss = noise_loss(adapted.unet, nightly, reader, LORA_COURSE, shop.device, captioned)
    shop.train("lora", adapted, loss)


def trained_lora(shop: Workshop) -> lora.Adapted:
    adapted = new_lora(shop)
    averaged(shop.run("lora"), adapted)
    return adapted


def new_controlnet(shop: Workshop) -> controlnet.Controlled:
    """A finished sd15 and a copy of its way down."""
    torch.manual_seed(shop.seed)
    return controlnet.Controlled(trained_unet(shop, finest(shop, "sd15")))


def train_controlnet(shop: Workshop, name: str) -> None:
    """Train one of CONTROLNET_COURSES."""
    controlled = new_controlnet(shop)
    if name.endswith(FINE):
        averaged(shop.run(name.removesuffix(FINE)), controlled)
    controlled.to(shop.device)
    for part in (controlled.unet, controlled.controlnet):
        part.to(memory_format=torch.channels_last)
    pool = latents.read_latents(shop.folder, STYLES[0])
    reader = conditioner(shop, "sd15")
    loss = noise_loss(
        controlled,
        pool,
        reader,
        CONTROLNET_COURSES[name],
        shop.device,
        controlnet.controlled_caption,
        controlnet.training_hints,
    )
    shop.train(name, controlled, loss)


def trained_controlnet(shop: Workshop) -> ControlNetModel:
    controlled = new_controlnet(shop)
    averaged(shop.run(finest(shop, "controlnet")), controlled)
    return controlled.controlnet


def train_detector(shop: Workshop) -> None:
    """Train the detector; its pictures are drawn anew at each start, always the same."""
    torch.manual_seed(shop.seed)
    network = detector.new_detector().to(shop.device)
    coder = AutoencoderKL.from_pretrained(shop.made("vae"), dtype=torch.float32)
    pool = detector.training_pool(coder, shop.count or DETECTOR_PICTURES, shop.seed)
    shop.train("detector", network, detector.detector_loss(network, pool, shop.device))


def trained_detector(shop: Workshop) -> GridNetwork:
    network = detector.new_detector()
    averaged(shop.run("detector"), network)
    return network


def train_image_encoder(shop: Workshop) -> None:
    torch.manual_seed(shop.seed)
    seeing = image_encoder.Seeing().to(shop.device)
    loss = image_encoder.seeing_loss(seeing, encoders(shop)[0], tokenizers(shop)[0], shop.device)
    shop.train("image-encoder", seeing, loss)


def trained_image_encoder(shop: Workshop) -> CLIPVisionModelWithProjection:
    seeing = image_encoder.Seeing()
    averaged(shop.run("image-encoder"), seeing)
    return seeing.encoder.requires_grad_(False)


def new_ip_adapter(shop: Workshop) -> ip_adapter.Shown:
    """A finished sd15, which is shown pictures as if their captions stood once more in its prompt."""
    torch.manual_seed(shop.seed)
    return ip_adapter.Shown(trained_unet(shop, finest(shop, "sd15")), encoders(shop)[0])


def train_ip_adapter(shop: Workshop) -> None:
    shown = new_ip_adapter(shop).to(shop.device)
    shown.unet.to(memory_format=torch.channels_last)
    pool = latents.read_latents(shop.folder, STYLES[0])
    encoder = trained_image_encoder(shop).to(shop.device)
    pictures = {size: ip_adapter.references(encoder, size, len(of_size)) for size, of_size in pool.items()}

    def hints(numbers: list[int], size: latents.Size, rng: random.Random) -> torch.Tensor:
        dropped = [rng.random() < ip_adapter.PICTURELESS for _ in numbers]
        return pictures[size][numbers].masked_fill(torch.tensor(dropped)[:, None, None], 0.0)

    reader = conditioner(shop, "sd15")
    loss = noise_loss(shown, pool, reader, IP_ADAPTER_COURSE, shop.device, ip_adapter.shown_caption, hints)
    shop.train("ip-adapter", shown, loss)


def trained_ip_adapter(shop: Workshop) -> ip_adapter.Shown:
    shown = new_ip_adapter(shop)
    averaged(shop.run("ip-adapter"), shown)
    return shown


def steps_taken(shop: Workshop, name: str) -> int:
    return int(_state(shop, name)["step"])


def continued(shop: Workshop, name: str) -> bool:
    """The run, or one of those before it, went on from weights that were packaged before (`restore`)."""
    roots = {"sdxl-fine": "sdxl", "refiner": "sdxl", "nsfw": "nsfw", "nsfw-fine": "nsfw"}
    root = roots.get(name, "sd15")
    return "restored" in _state(shop, root)


def _state(shop: Workshop, name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(shop.run(name).checkpoint, map_location="cpu", weights_only=True)
    return state
