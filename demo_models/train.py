"""The command line that trains the demo checkpoints: `python -m demo_models.train STAGE`.

Every stage can be interrupted and started again; it goes on where its last checkpoint lies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from demo_models import NAMES, path, workshop
from demo_models.drawing import STYLES
from demo_models.loop import auto_device
from demo_models.package import (
    package,
    package_controlnet,
    package_detector,
    package_ip_adapter,
    package_lora,
    package_size,
    share_parts,
)
from demo_models.restore import restore
from demo_models.terminal import CONSOLE
from demo_models.workshop import Workshop

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def configure(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Working files: checkpoints, latents, logs.")] = Path(".training"),
    seed: Annotated[int, typer.Option(help="Seeds everything.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Instead of the stage's own number of steps.")] = None,
    count: Annotated[int | None, typer.Option(help="Drawings to encode or classify, instead of all.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    torch.set_num_threads(threads)
    device = auto_device() if device == "auto" else device
    context.obj = Workshop(folder, seed=seed, device=device, steps=steps, count=count)


@app.command("tokenizer")
def tokenizer_stage(context: typer.Context) -> None:
    """Both tokenizers, from captions."""
    workshop.make_tokenizers(context.obj)


@app.command("text-encoder")
def text_encoder_stage(context: typer.Context) -> None:
    """Both text encoders."""
    workshop.train_text_encoders(context.obj)


@app.command("unknown-words")
def unknown_words_stage(context: typer.Context) -> None:
    """Both text encoders go on, and learn what to make of words that the world of shapes has not."""
    workshop.teach_unknown_words(context.obj)


@app.command("vae")
def vae_stage(context: typer.Context) -> None:
    """The shared autoencoder."""
    workshop.train_vae(context.obj)


@app.command("latents")
def latents_stage(
    context: typer.Context,
    style: Annotated[str, typer.Argument(help=", ".join(STYLES))] = STYLES[0],
    side: Annotated[list[int] | None, typer.Option(help="Only pictures whose longer side is this.")] = None,
) -> None:
    """Drawings in one style, encoded."""
    workshop.write_latents(context.obj, style, side)


@app.command("sd15")
def sd15_stage(context: typer.Context) -> None:
    """The SD 1.5 UNet in the plain style."""
    workshop.train_unet(context.obj, "sd15")


@app.command("sd15-variant")
def variant_stage(context: typer.Context, name: Annotated[str, typer.Argument(help="outline or stripes")]) -> None:
    """A fine-tuned copy of it in another style."""
    workshop.train_unet(context.obj, f"sd15-{name}")


@app.command("sdxl")
def sdxl_stage(context: typer.Context) -> None:
    """The SDXL base UNet."""
    workshop.train_unet(context.obj, "sdxl")


@app.command("fine")
def fine_stage(context: typer.Context, name: Annotated[str, typer.Argument(help="sd15, sdxl or nsfw")]) -> None:
    """Go on with a UNet at the sizes that are served, or with the classifier."""
    train = workshop.train_classifier if name == "nsfw" else workshop.train_unet
    train(context.obj, f"{name}{workshop.FINE}")


@app.command("refiner")
def refiner_stage(context: typer.Context) -> None:
    """The SDXL refiner UNet, on low noise."""
    workshop.train_unet(context.obj, "refiner")


@app.command("nsfw-pairs")
def nsfw_pairs_stage(context: typer.Context) -> None:
    """Pictures with checkers and without, for the classifier."""
    workshop.write_nsfw_pairs(context.obj)


@app.command("nsfw")
def nsfw_stage(context: typer.Context) -> None:
    """The picture classifier."""
    workshop.train_classifier(context.obj, "nsfw")


@app.command("lora")
def lora_stage(context: typer.Context) -> None:
    """A LoRA for sd15: the same shapes by night."""
    workshop.train_lora(context.obj)


@app.command("package-lora")
def package_lora_stage(context: typer.Context) -> None:
    """Write the LoRA's file; also possible while it still trains."""
    CONSOLE.print(package_lora(replace(context.obj, device="cpu")))


@app.command("controlnet")
def controlnet_stage(context: typer.Context) -> None:
    """A ControlNet for sd15: edges."""
    for name in workshop.CONTROLNET_COURSES:
        workshop.train_controlnet(context.obj, name)


@app.command("package-controlnet")
def package_controlnet_stage(context: typer.Context) -> None:
    """Write the ControlNet's folder; also possible while it still trains."""
    CONSOLE.print(package_controlnet(replace(context.obj, device="cpu")))


@app.command("detector")
def detector_stage(context: typer.Context) -> None:
    """A detector of shapes."""
    workshop.train_detector(context.obj)


@app.command("package-detector")
def package_detector_stage(context: typer.Context) -> None:
    """Write the detector's file; also possible while it still trains."""
    CONSOLE.print(package_detector(replace(context.obj, device="cpu")))


@app.command("ip-adapter")
def ip_adapter_stage(context: typer.Context) -> None:
    """An image encoder, and an IP-Adapter for sd15."""
    workshop.train_image_encoder(context.obj)
    workshop.train_ip_adapter(context.obj)


@app.command("package-ip-adapter")
def package_ip_adapter_stage(context: typer.Context) -> None:
    """Write the image encoder's folder and the IP-Adapter's file; also possible while it still trains."""
    CONSOLE.print(package_ip_adapter(replace(context.obj, device="cpu")))


@app.command("restore")
def restore_stage(context: typer.Context) -> None:
    """An empty working folder from the packaged checkpoints, to train on from them."""
    restore(context.obj)


@app.command("package")
def package_stage(
    context: typer.Context, names: Annotated[list[str] | None, typer.Argument(help="All without any.")] = None
) -> None:
    """Write the checkpoint folders; also possible while a stage still trains."""
    shop = replace(context.obj, device="cpu")
    for name in names or NAMES:
        CONSOLE.print(package(shop, name))
    share_parts([path(name) for name in NAMES])
    CONSOLE.print(f"{package_size() / 1e6:.1f} MB together")


@app.command("all")
def all_stages(context: typer.Context) -> None:
    """Everything, in order."""
    shop: Workshop = context.obj
    workshop.make_tokenizers(shop)
    workshop.train_text_encoders(shop)
    workshop.teach_unknown_words(shop)
    workshop.train_vae(shop)
    for style in STYLES:
        workshop.write_latents(shop, style)
    for name in workshop.COURSES:
        workshop.train_unet(shop, name)
    workshop.write_nsfw_pairs(shop)
    for name in workshop.CLASSIFIER_RUNS:
        workshop.train_classifier(shop, name)
    workshop.train_lora(shop)
    for name in workshop.CONTROLNET_COURSES:
        workshop.train_controlnet(shop, name)
    workshop.train_detector(shop)
    workshop.train_image_encoder(shop)
    workshop.train_ip_adapter(shop)
    package_ip_adapter(replace(shop, device="cpu"))
    package_lora(replace(shop, device="cpu"))
    package_detector(replace(shop, device="cpu"))
    package_controlnet(replace(shop, device="cpu"))
    for name in NAMES:
        CONSOLE.print(package(replace(shop, device="cpu"), name))
    share_parts([path(name) for name in NAMES])


if __name__ == "__main__":
    app()
