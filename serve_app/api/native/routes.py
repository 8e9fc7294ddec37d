"""The native API: jobs, their results, events and images, the models.

Each call translates HTTP to the service's words and back; what they mean is elsewhere.
"""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from deployments.engine.samplers.registry import NAMES
from serve_app.api.field_errors import checked
from serve_app.api.idempotency_key import KEY_PARAMETER, idempotency_key
from serve_app.api.links import Paths
from serve_app.api.middleware import read_json
from serve_app.api.native.generation_body import GENERATION_CONTENT, read_generation
from serve_app.api.native.job_events import job_events
from serve_app.api.native.job_view import Accepted, JobList, JobView, accepted, job_view
from serve_app.api.service import Service
from serve_app.api.sse import EventStreams
from serve_app.auth.caller import caller_of
from serve_app.config.models import ModelDefaults, ModelLimits, ModelLora
from serve_app.config.settings import Settings
from serve_app.errors import MalformedId
from serve_app.image_store.store import CONTENT_TYPES, ImageName
from serve_app.jobs.job import Job, is_job_id
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.upscale_request import LANCZOS, UpscaleRequest

_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?(?=$|[,;\s])', re.ASCII | re.IGNORECASE)

_PARAMETERS = [
    {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "description": "wait=N: wait up to N seconds for the result (RFC 7240).",
    },
    KEY_PARAMETER,
]
_GENERATE_DOC = {"requestBody": {"required": True, "content": GENERATION_CONTENT}, "parameters": _PARAMETERS}
_UPSCALE_DOC = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/UpscaleRequest"}}},
    },
    "parameters": _PARAMETERS,
}

_EVENTS: dict[int | str, Any] = {200: {"content": {"text/event-stream": {}}}}
_IMAGE: dict[int | str, Any] = {200: {"content": {kind: {} for kind in CONTENT_TYPES.values()}}}


class RefinerView(BaseModel):
    """The refiner that finishes a model's images unless the request says otherwise."""

    model: str
    switch_at: float


class ModelView(BaseModel):
    """A model that a request may name."""

    name: str
    family: str
    description: str
    licence: str
    defaults: ModelDefaults
    limits: ModelLimits
    loras: tuple[ModelLora, ...]
    refiner: RefinerView | None


class ModelList(BaseModel):
    """The catalogue."""

    default: str
    models: list[ModelView]
    samplers: list[str]
    loras: list[str]
    controlnets: list[str]
    upscalers: list[str]
    safety: str


def native_routes(service: Service) -> APIRouter:
    """The routes of the native API."""
    routes = APIRouter()
    limits = service.settings.limits
    streams = EventStreams(limits.max_event_streams)

    def paths(request: Request) -> Paths:
        return Paths.of(request, service.settings.access.image_link_s)

    def view(job: Job, request: Request) -> JobView:
        return job_view(job, service.runner, service.hub.latest(job.id), paths(request))

    @routes.post(
        "/generate",
        status_code=202,
        responses={200: {"model": JobView}, 202: {"model": Accepted}},
        openapi_extra=_GENERATE_DOC,
    )
    async def generate(request: Request) -> Response:
        """Accept a request for images as a job; with `Prefer: wait=N` wait for its result."""
        asked = GenerationRequest.parse(await read_generation(request, limits))
        named = idempotency_key(request)
        return await answered(
            request, *await service.accept_once(asked, caller_of(request), named, paths(request).root)
        )

    @routes.post(
        "/upscale",
        status_code=202,
        responses={200: {"model": JobView}, 202: {"model": Accepted}},
        openapi_extra=_UPSCALE_DOC,
    )
    async def upscale(request: Request) -> Response:
        """Accept a picture that is to be larger as a job; with `Prefer: wait=N` wait for its result."""
        asked = checked(UpscaleRequest, await read_json(request, limits))
        named = idempotency_key(request)
        return await answered(
            request, *await service.accept_upscale(asked, caller_of(request), named, paths(request).root)
        )

    async def answered(request: Request, job: Job, replayed: bool) -> Response:
        """The answer to a request that has become a job. replayed: it had before."""
        headers = {"Location": paths(request).result(job.id)}
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        wait_s = _wait_s(request, limits.max_wait_s)
        if wait_s is not None:
            headers["Preference-Applied"] = f"wait={wait_s:g}"
            job = await service.wait(job, wait_s)
        if job.state.terminal:
            return JSONResponse(view(job, request).model_dump(mode="json"), 200, headers)
        body = accepted(job, service.runner, paths(request))
        return JSONResponse(body.model_dump(mode="json"), 202, headers)

    @routes.get("/result/{job_id}")
    async def result(job_id: str, request: Request) -> JobView:
        """A job: its state, its progress, its images."""
        return view(await service.store.get(_checked(job_id), tenant=caller_of(request).sees), request)

    @routes.get("/jobs")
    async def jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        cursor: Annotated[str | None, Query(max_length=64)] = None,
    ) -> JobList:
        """Jobs, newest first."""
        after = None if cursor is None else _checked(cursor)
        page = await service.store.page(tenant=caller_of(request).sees, limit=limit, cursor=after)
        return JobList(jobs=[view(job, request) for job in page.jobs], next_cursor=page.next_cursor)

    @routes.get("/jobs/{job_id}/events", response_class=StreamingResponse, responses=_EVENTS)
    async def events(job_id: str, request: Request) -> StreamingResponse:
        """A job's life as server-sent events: queued, progress …, then complete, failed, cancelled or blocked."""
        job = await service.store.get(_checked(job_id), tenant=caller_of(request).sees)
        return streams.open(job_events(service, job, paths(request)))

    @routes.delete("/jobs/{job_id}")
    async def cancel(job_id: str, request: Request) -> JobView:
        """Cancel a job: its lanes leave at the next step. An ended job stays as it is."""
        return view(await service.cancel(_checked(job_id), caller_of(request).sees), request)

    @routes.get("/images/{name}", response_class=Response, responses=_IMAGE)
    async def image(name: str, request: Request) -> Response:
        """An image file."""
        known = ImageName.parse(name)
        data = await service.image(known, caller_of(request).sees)
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(data, media_type=known.content_type, headers=headers)

    @routes.get("/models")
    async def models(request: Request) -> ModelList:
        """The models with their defaults, limits and licences; the names of samplers, LoRAs, ControlNets, upscalers."""
        return await asyncio.to_thread(_models, service, service.settings_for(caller_of(request)))

    return routes


def request_schemas() -> dict[str, Any]:
    """The JSON schemas of what the routes read by themselves, for the OpenAPI document."""
    schema = GenerationRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    nested: dict[str, Any] = schema.pop("$defs", {})
    return {"GenerationRequest": schema, **nested, "UpscaleRequest": UpscaleRequest.model_json_schema()}


def _models(service: Service, settings: Settings) -> ModelList:
    return ModelList(
        default=settings.default_model,
        models=[
            ModelView(
                name=name,
                family=model.family,
                description=model.description,
                licence=model.licence,
                defaults=model.defaults,
                limits=model.limits,
                loras=model.loras,
                refiner=None if model.refiner is None else RefinerView(model=model.refiner, switch_at=model.switch_at),
            )
            for name, model in settings.generating().items()
        ],
        samplers=list(NAMES),
        loras=list(service.loras.names()),
        controlnets=list(service.controlnets.names()),
        upscalers=[LANCZOS, *service.upscalers.names()],
        safety=settings.safety.mode,
    )


def _checked(job_id: str) -> str:
    if not is_job_id(job_id):
        raise MalformedId("a job's id has 32 hexadecimal digits", "job_id")
    return job_id


def _wait_s(request: Request, longest: float) -> float | None:
    """N of `Prefer: wait=N`, cut to `longest`; None without one (a preference that isn't understood is ignored)."""
    for value in request.headers.getlist("prefer"):
        found = _WAIT.search(value)
        if found is not None:
            return min(float(found[1]), longest)
    return None
