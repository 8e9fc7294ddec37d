"""The classic design, as a good tutorial builds it, to be measured against: FastAPI, a queue of 100, one worker.

    python -m benchmarks.classic serve CHECKPOINT --port 8100
    python -m benchmarks.classic bare CHECKPOINT < requests.jsonl

POST /generate puts a job into an asyncio queue and answers {job_id, status}; a worker takes one job after the other,
calls the pipeline, saves a PNG and keeps its path in a dict; GET /result/{job_id} says processing, complete with an
image_url, or failed. The safety checker is left out, as the tutorial does. What it could do better without becoming
another design is done: the pipeline lives in one thread of its own, so that the event loop is never blocked and
OpenMP keeps its pace. `bare` times the same pipeline's calls with no server at all.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from PIL import Image
from pydantic import BaseModel, Field

from benchmarks.service_requests import ImageRequest

QUEUE = 100

_SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}


class GenerateBody(BaseModel):
    """What POST /generate takes: the tutorial's fields and ranges (sizes and steps as the demo models have them)."""

    prompt: str = Field(min_length=1, max_length=2000)
    negative_prompt: str = ""
    num_inference_steps: int = Field(default=25, ge=1, le=50)
    guidance_scale: float = Field(default=7.5, ge=1, le=20)
    width: int = Field(default=256, ge=64, le=1024, multiple_of=8)
    height: int = Field(default=256, ge=64, le=1024, multiple_of=8)
    seed: int = 0


class ClassicPipeline:
    """A diffusers pipeline. float16 on a GPU; on a CPU float32, in which it is fastest where fp16 isn't native."""

    def __init__(self, checkpoint: str, sampler: str) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if self._device == "cuda" else torch.float32
        diffusers.logging.set_verbosity_error()
        # where invisible-watermark is installed, as for the tests, diffusers would mark SDXL's images
        self._pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
            checkpoint, dtype=dtype, safety_checker=None, requires_safety_checker=False, add_watermarker=False
        ).to(self._device)
        scheduler = getattr(diffusers, _SCHEDULERS[sampler])
        self._pipeline.scheduler = scheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)

    def generate(self, body: GenerateBody) -> Image.Image:
        """One call of the pipeline, one image."""
        image: Image.Image = self._pipeline(
            body.prompt,
            negative_prompt=body.negative_prompt,
            num_inference_steps=body.num_inference_steps,
            guidance_scale=body.guidance_scale,
            width=body.width,
            height=body.height,
            generator=torch.Generator("cpu").manual_seed(body.seed),
        ).images[0]
        return image


def classic_app(checkpoint: str, sampler: str, folder: Path) -> FastAPI:
    """The service. folder: where images are saved."""
    queue: asyncio.Queue[tuple[str, GenerateBody]] = asyncio.Queue(maxsize=QUEUE)
    results: dict[str, dict[str, Any]] = {}

    async def work(thread: ThreadPoolExecutor, pipeline: ClassicPipeline) -> None:
        loop = asyncio.get_running_loop()
        while True:
            job_id, body = await queue.get()
            try:
                path = folder / f"{job_id}.png"
                image = await loop.run_in_executor(thread, pipeline.generate, body)
                await asyncio.to_thread(image.save, path)
                results[job_id] = {"status": "complete", "image_url": f"/images/{job_id}", "path": path}
            except Exception as error:  # the tutorial's worker lives on, whatever a job did
                results[job_id] = {"status": "failed", "error": repr(error)}

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1) as thread:
            loading = asyncio.get_running_loop().run_in_executor(thread, ClassicPipeline, checkpoint, sampler)
            worker = asyncio.create_task(work(thread, await loading))
            yield
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.post("/generate", status_code=202)
    async def generate(body: GenerateBody) -> dict[str, str]:
        job_id = uuid.uuid4().hex
        results[job_id] = {"status": "processing"}
        try:
            queue.put_nowait((job_id, body))
        except asyncio.QueueFull:
            del results[job_id]
            raise HTTPException(503, "the queue is full") from None
        return {"job_id": job_id, "status": "queued"}

    @app.get("/result/{job_id}")
    async def result(job_id: str) -> dict[str, str]:
        if job_id not in results:
            raise HTTPException(404, "no such job")
        return {"job_id": job_id, **{key: value for key, value in results[job_id].items() if key != "path"}}

    @app.get("/images/{job_id}")
    async def image(job_id: str) -> FileResponse:
        if "path" not in results.get(job_id, {}):
            raise HTTPException(404, "no such image")
        return FileResponse(results[job_id]["path"], media_type="image/png")

    return app


def body_of(request: ImageRequest) -> GenerateBody:
    """The benchmark's request in this server's words."""
    return GenerateBody(
        prompt=request.prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        width=request.width,
        height=request.height,
        seed=request.seed,
    )


cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@cli.command()
def serve(
    checkpoint: Annotated[str, typer.Argument(help="a diffusers folder or hub id")],
    folder: Annotated[Path, typer.Option(help="where images are saved")],
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8100,
    sampler: Annotated[str, typer.Option(help=", ".join(_SCHEDULERS))] = "dpmpp_2m",
) -> None:
    """Run the server on 127.0.0.1."""
    uvicorn.run(classic_app(checkpoint, sampler, folder), host="127.0.0.1", port=port, log_level="warning")


@cli.command()
def bare(
    checkpoint: Annotated[str, typer.Argument(help="a diffusers folder or hub id")],
    sampler: Annotated[str, typer.Option(help=", ".join(_SCHEDULERS))] = "dpmpp_2m",
) -> None:
    """Time the pipeline's calls without a server: each line of stdin is a request, each of stdout its seconds."""
    pipeline = ClassicPipeline(checkpoint, sampler)
    for line in sys.stdin:
        body = body_of(ImageRequest.model_validate_json(line))
        started = time.perf_counter()
        pipeline.generate(body)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    cli()
