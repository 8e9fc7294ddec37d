"""`darkroom upscale`: enlarge an image with a running service and write it to a file."""

import asyncio
import base64
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.generate import report
from serve_app.cli.image_files import ImageFiles
from serve_app.cli.options import DEFAULT_URL, AsJson, Key, Output, Overwrite, Url, WaitS, with_options_of
from serve_app.cli.output import reporting
from serve_app.schemas.upscale_request import UpscaleRequest


@with_options_of(UpscaleRequest, without=("output_format", "webhook_url"))
def upscale(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", exists=True, dir_okay=False, help="PNG, JPEG or WebP.")],
    output: Output = None,
    overwrite: Overwrite = False,
    wait_s: WaitS = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
    **fields: Any,
) -> None:
    """Enlarge an image and write it to a file. Ctrl-C cancels the job."""
    files = ImageFiles(output, overwrite)
    files.check(1, as_json)
    request = {
        **fields,
        "image": base64.b64encode(image.read_bytes()).decode(),
        "output_format": files.format,
    }
    request = {field: value for field, value in request.items() if value is not None}
    with reporting(as_json):
        report(asyncio.run(_upscaled(request, url, key, wait_s, files)), files, as_json)


async def _upscaled(
    request: dict[str, Any], url: str, key: str | None, wait_s: float | None, files: ImageFiles
) -> dict[str, Any]:
    from serve_app.cli.client import Service, run, save_images

    async with Service(url, key) as service:
        job = await run(service, request, wait_s, path="/upscale")
        await save_images(service, job, files)
    return job
