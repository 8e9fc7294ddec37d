"""AUTOMATIC1111's lists: what there is to choose from. Lists of things that Darkroom doesn't have are empty."""

import asyncio
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends

from deployments.engine.prompts.textual_inversion import EmbeddingFolder
from deployments.engine.samplers.registry import SAMPLERS, WEBUI_SAMPLERS
from deployments.engine.upscaling.folder import UpscalerFolder
from serve_app.api.a1111.dynamic_prompts import TITLE as DYNAMIC_PROMPTS
from serve_app.api.a1111.extras import EXTRAS_UPSCALERS
from serve_app.api.a1111.freeu import TITLES as FREEU
from serve_app.api.a1111.names import SCHEDULES
from serve_app.api.a1111.sd_upscale import SCRIPT_NAME
from serve_app.api.shared import CurrentService
from serve_app.auth.route_scopes import READ, Reader
from serve_app.images.infotext import HIRES_LABELS

_NONE: list[Any] = []

# path -> what it always answers
_FIXED: dict[str, Any] = {
    "latent-upscale-modes": [{"name": label} for name, label in HIRES_LABELS.items() if name.startswith("latent")],
    "hypernetworks": _NONE,
    "face-restorers": _NONE,
    "realesrgan-models": _NONE,
    "lycos": _NONE,
    "extensions": _NONE,
    "script-info": _NONE,
    "cmd-flags": {"api": True, "nowebui": True},
    # A1111's own answer where it can't tell; a client's business it isn't
    "memory": {"ram": {"error": "not told"}, "cuda": {"error": "not told"}},
}

# folders are read at each request, and what is loaded is the replicas' own business
_NOTHING_TO_DO = (
    "refresh-loras",
    "refresh-vae",
    "refresh-embeddings",
    "unload-checkpoint",
    "reload-checkpoint",
)

routes = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"], dependencies=[Depends(READ)])


@routes.get("/sd-models")
async def sd_models(caller: Reader, service: CurrentService) -> list[dict[str, Any]]:
    """The models that a request may name. Hashes are known once an image is drawn: they are in its info."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in service.settings_for(caller).generating()
    ]


@routes.post("/refresh-checkpoints")
async def refresh_checkpoints(service: CurrentService) -> None:
    """Take in at once what others have changed of models."""
    await service.live.look()


@routes.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """A1111's samplers by its labels, and those of diffusers that it hasn't.

    Schedules are a list of their own; Karras is in names too, as it was.
    """
    return [*_webui_samplers(), *_further_samplers()]


@routes.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """The noise schedules."""
    rhos = {"karras": 7.0, "polyexponential": 1.0}
    plain = ("automatic", "karras", "exponential", "polyexponential", "kl_optimal")
    return [
        {
            "name": name,
            "label": label,
            "aliases": ["SGMUniform"] if name == "sgm_uniform" else None,
            "default_rho": rhos.get(name, -1.0),
            "need_inner_model": not name.startswith(("align", *plain)),
        }
        for name, label in SCHEDULES.items()
    ]


@routes.get("/loras")
async def loras(service: CurrentService) -> list[dict[str, Any]]:
    """The LoRAs that a prompt may name. Where they lie is the service's own business."""
    names = await asyncio.to_thread(service.loras.names)
    return [{"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}} for name in names]


@routes.get("/sd-vae")
async def sd_vae(service: CurrentService) -> list[dict[str, str]]:
    """The VAEs that sd_vae may name. Where they lie is the service's own business."""
    return [{"model_name": name, "filename": name} for name in await asyncio.to_thread(service.vaes.names)]


@routes.get("/embeddings")
async def embeddings(service: CurrentService) -> dict[str, dict[str, Any]]:
    """The embeddings that prompts may name, and the files that can't be used."""
    return await asyncio.to_thread(_embeddings, service.embeddings)


@routes.get("/upscalers")
async def upscalers(service: CurrentService) -> list[dict[str, Any]]:
    """What makes pictures larger. Where the models lie is the service's own business."""
    models = await asyncio.to_thread(_scales, service.upscalers)
    return [
        {"name": name, "model_name": model, "model_path": None, "model_url": None, "scale": scale}
        for name, model, scale in (
            *((name, None, scale) for name, scale in zip(EXTRAS_UPSCALERS, (1, 4, 4), strict=True)),
            *((name, name, scale) for name, scale in models),
        )
    ]


@routes.get("/scripts")
async def scripts(service: CurrentService) -> dict[str, list[str]]:
    """The scripts that have something to work with here, and SD upscale. Their titles are lowercase, as in A1111."""
    folders = {
        "controlnet": (service.controlnets, service.ip_adapters),
        "adetailer": (service.detectors,),
    }
    always_on = await asyncio.to_thread(
        lambda: [name for name, of_script in folders.items() if any(folder.names() for folder in of_script)]
    )
    always_on += [title.lower() for title in (DYNAMIC_PROMPTS, *FREEU)]
    return {"txt2img": always_on, "img2img": [*always_on, SCRIPT_NAME]}


@routes.get("/prompt-styles")
async def prompt_styles(service: CurrentService) -> list[dict[str, str]]:
    """The styles that a request may name."""
    styles = service.settings.a1111.styles
    return [
        {"name": name, "prompt": style.prompt, "negative_prompt": style.negative_prompt}
        for name, style in styles.items()
    ]


def _webui_samplers() -> Iterator[dict[str, Any]]:
    for sampler in WEBUI_SAMPLERS.values():
        options = {} if sampler.automatic is None else {"scheduler": sampler.automatic}
        yield {"name": sampler.label, "aliases": list(sampler.aliases), "options": options}
        if "karras" in sampler.schedules:
            aliases = [f"{alias}_ka" for alias in sampler.aliases if alias.startswith("k_")]
            yield {"name": f"{sampler.label} Karras", "aliases": aliases, "options": {"scheduler": "karras"}}


def _further_samplers() -> Iterator[dict[str, Any]]:
    labels = {sampler.label for sampler in WEBUI_SAMPLERS.values()}
    for name, sampler in SAMPLERS.items():
        if sampler.label not in labels and "PLMS" not in sampler.aliases:
            yield {"name": sampler.label, "aliases": [name, *sampler.aliases], "options": {}}


def _embeddings(folder: EmbeddingFolder) -> dict[str, dict[str, Any]]:
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    loaded = folder.entries()
    return {
        "loaded": {name: {**unknown, "shape": one.channels, "vectors": one.tokens} for name, one in loaded.items()},
        "skipped": {name: {**unknown, "shape": 0, "vectors": 0} for name in folder.contents().skipped},
    }


def _scales(folder: UpscalerFolder) -> list[tuple[str, int]]:
    """Each model's name and scale."""
    return [(name, source.scale) for name, source in folder.entries().items()]


def _always(answer: Any) -> Any:
    async def route() -> Any:
        return answer

    return route


for path, answer in _FIXED.items():
    routes.add_api_route(f"/{path}", _always(answer), methods=["GET"], name=path)
for path in _NOTHING_TO_DO:
    routes.add_api_route(f"/{path}", _always(None), methods=["POST"], name=path)
