"""`darkroom generate`: images into files, from a running service or from the engine alone."""

import asyncio
import base64
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.image_files import ImageFiles
from serve_app.cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_URL,
    AsJson,
    Key,
    Output,
    Overwrite,
    Url,
    WaitS,
    with_options_of,
)
from serve_app.cli.output import check_ended, reporting, say, write_json
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated

_SIDES = ("left", "top", "right", "bottom")


def _sides(text: str | None) -> str | None:
    if text is not None and re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5}){3}", text, re.ASCII) is None:
        raise typer.BadParameter(f"{text!r} isn't four numbers of pixels: LEFT,TOP,RIGHT,BOTTOM")
    return text


def _named(written: list[str] | None) -> list[str] | None:
    for lora in written or ():
        _lora(lora)
    return written


def _lora(written: str) -> dict[str, Any]:
    """A name, or "name:weight". Raises BadParameter."""
    name, colon, weight = written.partition(":")
    try:
        return {"name": name, **({"weight": float(weight)} if colon else {})}
    except ValueError:
        raise typer.BadParameter(f"{written!r} isn't NAME or NAME:WEIGHT of a LoRA") from None


def _detailed(written: list[str] | None) -> list[str] | None:
    for detail in written or ():
        _detail(detail)
    return written


def _detail(written: str) -> dict[str, Any]:
    """DETECTOR or DETECTOR:STRENGTH, also followed by =PROMPT, as one of a request's details. Raises BadParameter."""
    named, equals, prompt = written.partition("=")
    detector, colon, strength = named.partition(":")
    own = {"prompt": prompt} if equals else {}
    try:
        return {"detector": detector, **own, **({"strength": float(strength)} if colon else {})}
    except ValueError:
        raise typer.BadParameter(f"{written!r} isn't DETECTOR, DETECTOR:STRENGTH or either with =PROMPT") from None


def _members(**members: object) -> dict[str, object] | None:
    """An object of the members that have a value; None where none has."""
    return {name: value for name, value in members.items() if value is not None} or None


@with_options_of(GenerationRequest, without=("output_format", "preview", "webhook_url", "base_weight"))
def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    output: Output = None,
    overwrite: Overwrite = False,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A picture to begin with."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="As large as the image: white is painted anew.",
        ),
    ] = None,
    controls: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="MODEL[:canny|:lineart]=FILE",
            help="A ControlNet and the picture that steers it; may be given several times.",
        ),
    ] = None,
    references: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="MODEL[:SCALE]=FILE",
            help="An IP-Adapter, and the picture that it shows to the image; may be given several times.",
        ),
    ] = None,
    mask_blur: Annotated[int | None, typer.Option(help="Pixels over which the edge of the mask fades.")] = None,
    only_masked: Annotated[bool, typer.Option("--only-masked", help="Draw the masked part alone, enlarged.")] = False,
    outpaint: Annotated[
        str | None,
        typer.Option(metavar="LEFT,TOP,RIGHT,BOTTOM", callback=_sides, help="Pixels by which to extend the image."),
    ] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="NAME[:WEIGHT]",
            callback=_named,
            help="A LoRA to apply, and its weight (1 if left out); may be given several times.",
        ),
    ] = None,
    hires_scale: Annotated[float | None, typer.Option("--hires", help="Times the size, by a second pass.")] = None,
    hires_strength: Annotated[float | None, typer.Option(help="How far the second pass may go, up to 1 (0.7).")] = None,
    hires_upscaler: Annotated[
        str | None,
        typer.Option(help='Enlarges the first pass: "latent", "lanczos", …'),
    ] = None,
    hires_model: Annotated[str | None, typer.Option(help="The second pass's model, if it is another one.")] = None,
    details: Annotated[
        list[str] | None,
        typer.Option(
            "--detail",
            metavar="DETECTOR[:STRENGTH][=PROMPT]",
            callback=_detailed,
            help="What it finds in the image is drawn over, enlarged; may be given several times.",
        ),
    ] = None,
    refiner: Annotated[
        bool | None,
        typer.Option(
            "--refiner/--no-refiner",
            help="With the model's refiner, or without.",
        ),
    ] = None,
    wait_s: WaitS = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    local: Annotated[bool, typer.Option("--local", help="Draw in this process, without a service.")] = False,
    config: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="Configuration with the models of --local.")
    ] = DEFAULT_CONFIG,
    as_json: AsJson = False,
    **fields: Any,
) -> None:
    """Draw images and write them to files. What is left out, the model's defaults say. Ctrl-C cancels the job."""
    files = ImageFiles(output, overwrite)
    files.check(fields["n"] or 1, as_json)
    if local and not config.exists():
        raise typer.BadParameter(
            f"there is no {config} here: name a configuration, such as the serve_config.yaml of Darkroom's repository",
            param_hint="--config",
        )
    request = {
        **fields,
        "prompt": prompt,
        "image": _in_text(image),
        "mask": _in_text(mask),
        "controlnets": [_control(text) for text in controls] if controls else None,
        "references": [_reference(text) for text in references] if references else None,
        "inpaint": _members(blur=mask_blur, only_masked=only_masked or None),
        "outpaint": None if outpaint is None else dict(zip(_SIDES, map(int, outpaint.split(",")), strict=True)),
        "loras": [_lora(written) for written in loras or ()] or None,
        "hires": _members(scale=hires_scale, strength=hires_strength, upscaler=hires_upscaler, model=hires_model),
        "details": [_detail(written) for written in details or ()] or None,
        "refiner": refiner,
        "output_format": files.format,
    }
    request = {field: value for field, value in request.items() if value is not None}
    with reporting(as_json):
        if local:
            job = asyncio.run(_draw_here(request, config, files))
        else:
            job = asyncio.run(_draw_there(request, url, key, wait_s, files))
        report(job, files, as_json)


def _in_text(path: Path | None) -> str | None:
    return None if path is None else base64.b64encode(path.read_bytes()).decode()


def _control(text: str) -> dict[str, Any]:
    """MODEL[:PREPROCESSOR]=FILE as one of a request's controlnets."""
    name, equals, file = text.partition("=")
    model, _, preprocessor = name.partition(":")
    if not equals or not Path(file).is_file():
        raise typer.BadParameter(f"--control {text}: expected MODEL=FILE, and there is no file {file!r}")
    control = {"model": model, "image": _in_text(Path(file))}
    return control | ({"preprocessor": preprocessor} if preprocessor else {})


def _reference(text: str) -> dict[str, Any]:
    """MODEL[:SCALE]=FILE as one of a request's references. Raises BadParameter."""
    name, equals, file = text.partition("=")
    model, colon, scale = name.partition(":")
    if not equals or not Path(file).is_file():
        raise typer.BadParameter(f"--reference {text}: expected MODEL=FILE, and there is no file {file!r}")
    try:
        return {"model": model, "image": _in_text(Path(file)), **({"scale": float(scale)} if colon else {})}
    except ValueError:
        raise typer.BadParameter(f"--reference {text}: the scale {scale!r} isn't a number") from None


async def _draw_there(
    request: dict[str, Any], url: str, key: str | None, wait_s: float | None, files: ImageFiles
) -> dict[str, Any]:
    from serve_app.cli.client import Service, run, save_images

    async with Service(url, key) as service:
        job = await run(service, request, wait_s)
        await save_images(service, job, files)
    return job


async def _draw_here(request: dict[str, Any], config: Path, files: ImageFiles) -> dict[str, Any]:
    """In the form of a service's job, as far as there is such a thing without one."""
    from deployments.engine.conditioning.ip_adapter_files import IpAdapterFolder
    from deployments.engine.errors import InvalidRequest
    from serve_app.cli.config import read_settings
    from serve_app.cli.local_drawing import LocalImage, draw
    from serve_app.cli.output import ProgressBar
    from serve_app.images.decode import read_source
    from serve_app.images.inpainting import canvas_of, frame_of
    from serve_app.images.steering import SteeringPictures, SteeringSources
    from serve_app.planning.dynamic_prompts import with_chosen_texts
    from serve_app.planning.prompt_filter import PromptFilter
    from serve_app.planning.resolve import DRAWN_SEEDS, resolve
    from serve_app.planning.wildcard_folder import WildcardFolder

    settings = read_settings(config)
    parsed = validated(GenerationRequest, request)
    if settings.prompts.comments:
        parsed = parsed.without_comments()
    drawn_seed = secrets.randbelow(DRAWN_SEEDS)
    if parsed.dynamic_prompts:
        wildcards = WildcardFolder(settings.prompts.wildcards).read()
        parsed = with_chosen_texts(parsed, drawn_seed, wildcards, settings.limits)
    source = None
    if parsed.image is not None:
        source = read_source(parsed.image, parsed.mask, settings.limits.max_image_pixels)
    ip_adapters = IpAdapterFolder(settings.ip_adapters.folder)
    sources = SteeringSources.read(parsed, source, ip_adapters, settings.limits.max_image_pixels)
    generation, shown_texts = resolve(
        parsed, settings.seen_by(None), drawn_seed=drawn_seed, source=source, steering=sources
    )
    steering = SteeringPictures.read(generation, sources.stored(parsed, generation, source))
    if generation.hires is not None and generation.hires.upscaler_model is not None:
        raise InvalidRequest(
            f"hires.upscaler is {generation.hires.upscaler_model!r}: only a service has upscaler models",
            "hires.upscaler",
        )
    if generation.details:
        raise InvalidRequest("details: only a service has detectors", "details")
    frame = None
    if source is not None and generation.image is not None:
        size = generation.width, generation.height
        frame = frame_of(canvas_of(source, generation.image, *size), generation.image, *size)
    prompt_filter = PromptFilter(settings.safety.prompt_patterns)
    for text in shown_texts:
        prompt_filter.check(text)
    with ProgressBar() as bar:
        drawn: Sequence[LocalImage] = await draw(generation, settings, bar.update, frame, steering)
    images: list[dict[str, Any]] = []
    for index, image in enumerate(drawn):
        manifest = image.manifest
        shown_image = {
            "index": index,
            "blocked": image.data is None,
            "seed": manifest.seed,
            "width": manifest.width,
            "height": manifest.height,
            "format": generation.output_format,
            "nsfw": manifest.safety.model_dump(mode="json", include={"flagged", "score", "action", "flagged_by"}),
            "reproducibility": manifest.reproducibility,
        }
        file = files.write(f"local-{drawn[0].manifest.seed}", shown_image, len(drawn), image.data)
        images.append({**shown_image, "file": file})
    shown = any(image["file"] is not None for image in images)
    error = None if shown else {"code": "blocked", "message": "every image was withheld as unsafe"}
    return {
        "status": "complete" if shown else "blocked",
        "images": images,
        "error": error,
        "request": generation.model_dump(mode="json"),
    }


def report(job: dict[str, Any], files: ImageFiles, as_json: bool) -> None:
    """Say what has become of a job whose images are saved. Raises Failure for one that has nothing to show."""
    check_ended(job)
    for image in job["images"]:
        which = "the image" if image["seed"] is None else f"the image of seed {image['seed']}"
        if image["blocked"]:
            say(f"{which} was withheld as unsafe")
        elif image["nsfw"]["flagged"]:
            say(f"{which} is unsafe: {image['nsfw']['action']}")
    if as_json:
        write_json(job)
        return
    for image in job["images"]:
        if image["file"] is not None:
            size = f"{image['width']}x{image['height']}"
            files.announce(f"{image['file']}  " + (size if image["seed"] is None else f"seed {image['seed']}"))
