"""`darkroom upscale`: enlarge an image with a running service and write it to a file."""

import asyncio
import base64
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.options import DEFAULT_URL, AsJson, Key, Output, Url, WaitS, with_options_of
from serve_app.cli.output import FORMATS, check_ended, reporting, say, write_image, write_json, write_line
from serve_app.schemas.upscale_request import UpscaleRequest


@with_options_of(UpscaleRequest, without=("output_format", "webhook_url"))
def upscale(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", exists=True, dir_okay=False, help="PNG, JPEG or WebP.")],
    output: Output,
    wait_s: WaitS = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
    **fields: Any,
) -> None:
    """Enlarge an image and write it to a file. Ctrl-C cancels the job."""
    request = {
        **fields,
        "image": base64.b64encode(image.read_bytes()).decode(),
        "output_format": FORMATS[output.suffix.lower()],
    }
    request = {field: value for field, value in request.items() if value is not None}
    with reporting(as_json):
        _report(asyncio.run(_upscaled(request, url, key, wait_s, output)), as_json)


async def _upscaled(
    request: dict[str, Any], url: str, key: str | None, wait_s: float | None, output: Path
) -> dict[str, Any]:
    from serve_app.cli.client import Service, run_and_save

    async with Service(url, key) as service:
        return await run_and_save(
            service, request, wait_s, lambda _job, _image, data: write_image(output, data), path="/upscale"
        )


def _report(job: dict[str, Any], as_json: bool) -> None:
    """Show the result. Raises Failure for a job that ended without an image."""
    check_ended(job)
    (image,) = job["images"]
    if image["nsfw"]["flagged"]:
        say(f"the image is unsafe: {image['nsfw']['action']}")
    if as_json:
        write_json(job)
    else:
        write_line(f"{image['file']}  {image['width']}x{image['height']}")
