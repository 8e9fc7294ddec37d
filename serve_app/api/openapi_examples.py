"""What the routes may be asked, for the OpenAPI document: bodies that the default service takes (a test sends each)."""

from typing import Any, Final

_PROMPT = "a large red circle on a blue background"
_SIZE = {"width": 256, "height": 256}

# the smallest PNG file, of one pixel
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"


# path -> a body; of forms the texts, for a file stands beside them
BODY_EXAMPLES: Final[dict[str, Any]] = {
    "/generate": {"prompt": _PROMPT, "model": "demo-sd15", "seed": 4, "steps": 20, **_SIZE},
    "/upscale": {"image": _PIXEL, "upscaler": "lanczos", "scale": 2},
    "/v1/images/generations": {"prompt": _PROMPT, "model": "demo-sd15", "size": "256x256", "n": 1, "seed": 4},
    "/v1/images/edits": {"prompt": "a large green ring", "size": "256x256", "strength": "0.7", "seed": "4"},
    "/v1/images/variations": {"n": "1", "size": "256x256", "seed": "4"},
    "/sdapi/v1/txt2img": {"prompt": _PROMPT, "steps": 20, "seed": 4, "sampler_name": "Euler a", **_SIZE},
    "/sdapi/v1/img2img": {"prompt": _PROMPT, "init_images": [_PIXEL], "denoising_strength": 0.7, "seed": 4, **_SIZE},
    "/sdapi/v1/options": {"sd_model_checkpoint": "demo-sd15"},
    "/sdapi/v1/png-info": {"image": _PIXEL},
    "/sdapi/v1/extra-single-image": {"image": _PIXEL, "upscaler_1": "Lanczos", "upscaling_resize": 2},
    "/sdapi/v1/extra-batch-images": {"imageList": [{"data": _PIXEL, "name": "a"}], "upscaling_resize": 2},
    "/internal/progress": {"id_task": "task(mine)", "live_preview": False},
    "/models/{model_id}": {"inputs": _PROMPT, "parameters": {"seed": 4, "num_inference_steps": 20}},
    "/predict": {"inputs": _PROMPT, "parameters": {"seed": 4, "guidance_scale": 4.0}},
}

_JOB = "019c7d3f2a51c0b7e64f9d20a83b5e17"
PARAMETER_EXAMPLES: Final[dict[str, Any]] = {
    "job_id": _JOB,
    "name": f"{_JOB}-1-0.png",
    "model_id": "demo-sd15",
    "limit": 20,
    "cursor": _JOB,
    "skip_current_image": True,
    "Prefer": "wait=60",
    "Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}


def example_of(path: str, content_type: str) -> Any:
    """A body of this type for the path."""
    if content_type.startswith("image/"):
        return "the bytes of a file"
    body = BODY_EXAMPLES[path]
    return {"request": body} if (path, content_type) == ("/generate", "multipart/form-data") else body
