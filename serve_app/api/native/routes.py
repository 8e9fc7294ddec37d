"""The native API: jobs, their results, events and images, the models.

Each call translates HTTP to the service's words and back; what they mean is elsewhere.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel, Field
from pydantic.config import JsonDict

from deployments.engine.errors import InvalidRequest
from deployments.engine.samplers.registry import NAMES, SAMPLERS, SCHEDULES, WEBUI_SAMPLERS, WEBUI_SCHEDULES, is_webui
from serve_app.api.bodies import (
    FILE_SCHEMA,
    FORM_TYPE,
    JSON_TYPE,
    PIXEL,
    IdempotencyKey,
    JsonBody,
    RequestBody,
    media_type,
    parse_json,
    read_form,
    read_json,
    schema_of,
)
from serve_app.api.native.job_events import job_events
from serve_app.api.native.job_view import Accepted, JobList, JobView, Paths, accepted, job_view
from serve_app.api.service import RequestOrigin, Service
from serve_app.api.shared import CurrentService, CurrentStreams
from serve_app.api.sse import EventStream
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import READ, Changer, DrawerFromImage, LinkedReader, Reader
from serve_app.config.models import ModelDefaults, ModelLimits, ModelLora
from serve_app.config.settings import Settings
from serve_app.errors import MalformedId
from serve_app.image_store.store import CONTENT_TYPES, ImageName
from serve_app.jobs.job import JOB_ID, Job, is_job_id
from serve_app.schemas.generation_request import LATENT_UPSCALERS, PIXEL_UPSCALERS, GenerationRequest
from serve_app.schemas.upscale_request import LANCZOS, UpscaleRequest
from serve_app.schemas.validation import validated

_WAIT = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?(?=$|[,;\s])', re.ASCII | re.IGNORECASE)
_JOB = "019c7d3f2a51c0b7e64f9d20a83b5e17"
_ID_END = re.compile(r"[0-9a-f]{4,32}", re.ASCII)

_EVENTS: dict[int | str, Any] = {200: {"content": {"text/event-stream": {}}}}
_IMAGE: dict[int | str, Any] = {200: {"content": {kind: {} for kind in CONTENT_TYPES.values()}}}
_JOB_ANSWERS: dict[int | str, Any] = {200: {"model": JobView}, 202: {"model": Accepted}}


class RefinerView(BaseModel):
    """The refiner that finishes a model's images unless the request says otherwise."""

    model: str
    switch_at: float


class ModelView(BaseModel):
    """A model that a request may name."""

    name: str
    alias_of: str | None = Field(description="The model that this is a further name of.")
    family: str
    description: str
    draws: str = Field(description="What it draws, if that isn't anything.")
    examples: tuple[str, ...] = Field(description="Prompts that it draws well.")
    licence: str
    defaults: ModelDefaults
    limits: ModelLimits
    loras: tuple[ModelLora, ...]
    refiner: RefinerView | None


class SamplerView(BaseModel):
    """A sampler by its readable name, with the schedules that its name may end with: `name`_`schedule`."""

    name: str
    label: str
    schedules: dict[str, str]


class ModelList(BaseModel):
    """The catalogue."""

    default: str
    models: list[ModelView]
    samplers: list[str]
    sampler_choices: list[SamplerView]
    loras: list[str]
    controlnets: list[str]
    ip_adapters: list[str]
    vaes: list[str]
    upscalers: list[str]
    detectors: dict[str, list[str]] = Field(description="What each of them finds.")
    hires_upscalers: list[str]
    embeddings: list[str]
    wildcards: list[str] = Field(description="What prompts with variants may name.")
    skipped: dict[str, dict[str, str]] = Field(
        description="Files that can't be used, and why, by folder: loras, controlnets, ip_adapters, …"
    )
    safety: str


class GenerationBody(RequestBody):
    """Reads JSON, or a form whose part `request` is that JSON and whose files are its pictures."""

    model = GenerationRequest
    # the request's fields that may come as files
    _pictures = ("image", "mask")
    _example = {  # noqa: RUF012  # not changed
        "prompt": "a large red circle on a blue background",
        "model": "demo-sd15",
        "seed": 4,
        "steps": 20,
        "width": 256,
        "height": 256,
    }

    @property
    def content(self) -> dict[str, Any]:
        schema = schema_of(self.model)
        form = {
            "type": "object",
            "properties": {"request": schema, **dict.fromkeys(self._pictures, FILE_SCHEMA)},
            "required": ["request"],
            "additionalProperties": False,
        }
        return {
            JSON_TYPE: {"schema": schema, "example": self._example},
            FORM_TYPE: {
                "schema": form,
                "encoding": {"request": {"contentType": JSON_TYPE}},
                "example": {"request": self._example},
            },
        }

    async def __call__(self, request: Request) -> GenerationRequest:
        as_form = media_type(request) == FORM_TYPE
        return validated(GenerationRequest, await (self._of_form(request) if as_form else read_json(request)))

    async def _of_form(self, request: Request) -> Any:
        """The JSON value that a form stands for, its files as base64. Raises InvalidRequest for an unknown part."""
        form = await read_form(request)
        for name in (*form.texts, *form.files, *form.lists):
            if name not in ("request", *self._pictures):
                known = ", ".join(self._pictures)
                raise InvalidRequest(f"unknown part {name[:64]!a}; parts: request, {known}", name[:64])
        # (some clients give every part a file's name)
        written = form.texts["request"].encode() if "request" in form.texts else b"".join(form.files.get("request", ()))
        body = parse_json(written, request.state.limits)
        for name in self._pictures:
            if name in form.texts:
                raise InvalidRequest(f"{name} must be a file, or a field of the request", name)
            files = form.files.get(name, ())
            if len(files) > 1 or (files and isinstance(body, dict) and body.get(name) is not None):
                raise InvalidRequest(f"{name} comes twice", name)
            if files and isinstance(body, dict):
                body[name] = base64.b64encode(files[0]).decode()
        return body


def _job_id(text: str) -> str:
    if not is_job_id(text):
        raise MalformedId("a job's id has 32 hexadecimal digits", "job_id")
    return text


def _id_end(text: str) -> str:
    if _ID_END.fullmatch(text) is None:
        raise MalformedId("the end of a job's id has 4 to 32 hexadecimal digits", "id")
    return text


# for the document alone: what doesn't fit it has an error of its own
_ID_SCHEMA: JsonDict = {"pattern": f"^{JOB_ID.pattern}$"}
_ID_END_SCHEMA: JsonDict = {"pattern": f"^{_ID_END.pattern}$"}

JobId = Annotated[str, Path(examples=[_JOB], json_schema_extra=_ID_SCHEMA), AfterValidator(_job_id)]


async def _preferences(
    request: Request,
    prefer: Annotated[  # for the OpenAPI document: its value is the header's first line alone
        str | None,
        Header(description="wait=N: wait up to N seconds for the result (RFC 7240).", examples=["wait=60"]),
    ] = None,
) -> str:
    return ", ".join(request.headers.getlist("prefer"))


Preferences = Annotated[str, Depends(_preferences)]

routes = APIRouter()


async def _place_for_stream(streams: CurrentStreams) -> AsyncIterator[None]:
    """One of the event streams that may be open at once, until the answer has ended."""
    with streams.place():
        yield


def _paths_of(service: Service, request: Request, caller: Caller) -> Paths:
    return Paths.of(request, caller, service.settings.access.image_link_s)


def _view(service: Service, job: Job, request: Request, caller: Caller) -> JobView:
    return job_view(job, service.runner, service.hub.latest(job.id), _paths_of(service, request, caller))


@routes.post("/generate", status_code=202, responses=_JOB_ANSWERS)
async def generate(
    caller: DrawerFromImage,
    body: Annotated[GenerationRequest, Depends(GenerationBody())],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
    preferences: Preferences,
) -> Response:
    """Accept a request for images as a job; with `Prefer: wait=N` wait for its result."""
    origin = RequestOrigin(caller, key, _paths_of(service, request, caller).root)
    if service.settings.prompts.comments:
        body = body.without_comments()
    return await _answered(service, request, caller, preferences, *await service.accept(body, origin))


@routes.post("/upscale", status_code=202, responses=_JOB_ANSWERS)
async def upscale(
    caller: DrawerFromImage,
    body: Annotated[
        UpscaleRequest, Depends(JsonBody(UpscaleRequest, {"image": PIXEL, "upscaler": "lanczos", "scale": 2}))
    ],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
    preferences: Preferences,
) -> Response:
    """Accept a picture that is to be larger as a job; with `Prefer: wait=N` wait for its result."""
    origin = RequestOrigin(caller, key, _paths_of(service, request, caller).root)
    return await _answered(service, request, caller, preferences, *await service.accept_upscale(body, origin))


async def _answered(
    service: Service, request: Request, caller: Caller, preferences: str, job: Job, replayed: bool
) -> Response:
    """The answer to a request that has become a job; `replayed` if an earlier one with its key did."""
    paths = _paths_of(service, request, caller)
    headers = {"Location": paths.links(job.id).result}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    wait = _WAIT.search(preferences)  # the first one counts; a preference that isn't understood is ignored
    if wait is not None:
        wait_s = min(float(wait[1]), service.settings.limits.max_wait_s)
        headers["Preference-Applied"] = f"wait={wait_s:g}"
        job = await service.wait(job, wait_s)
    if job.state.terminal:
        return JSONResponse(_view(service, job, request, caller).model_dump(mode="json"), 200, headers)
    known = accepted(job, service.runner, service.hub.latest(job.id), paths)
    return JSONResponse(known.model_dump(mode="json"), 202, headers)


@routes.get("/result/{job_id}")
async def result(caller: Reader, job_id: JobId, service: CurrentService, request: Request) -> JobView:
    """A job: its state, its progress, its images."""
    return _view(service, await service.store.get(job_id, tenant=caller.sees), request, caller)


@routes.delete("/result/{job_id}", status_code=204)
async def forget(caller: Changer, job_id: JobId, service: CurrentService) -> None:
    """Delete a job that has ended, and its images."""
    await service.forget(job_id, caller.sees)


@routes.get("/jobs")
async def jobs(
    caller: Reader,
    service: CurrentService,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, examples=[20])] = 20,
    cursor: Annotated[
        Annotated[str, Field(json_schema_extra=_ID_SCHEMA)] | None, Query(max_length=64, examples=[_JOB])
    ] = None,
    id_end: Annotated[
        Annotated[str, Field(json_schema_extra=_ID_END_SCHEMA)] | None,
        Query(alias="id", max_length=64, examples=[_JOB[-8:]], description="The end of a job's id."),
    ] = None,
) -> JobList:
    """Jobs, newest first; with `id` those whose ids end so."""
    after = None if cursor is None else _job_id(cursor)
    end = "" if id_end is None else _id_end(id_end)
    page = await service.store.page(tenant=caller.sees, limit=limit, cursor=after, id_end=end)
    return JobList(jobs=[_view(service, job, request, caller) for job in page.jobs], next_cursor=page.next_cursor)


@routes.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses=_EVENTS,
    dependencies=[Depends(READ), Depends(_place_for_stream)],  # (asked once: FastAPI keeps what READ said)
)
async def events(caller: Reader, job_id: JobId, service: CurrentService, request: Request) -> Response:
    """A job's life as server-sent events: queued, progress …, then complete, failed, cancelled or blocked."""
    job = await service.store.get(job_id, tenant=caller.sees)
    if request.state.head:
        return Response(media_type="text/event-stream")
    paths = _paths_of(service, request, caller)
    return EventStream(job_events(service, job, paths))


@routes.delete("/jobs/{job_id}")
async def cancel(caller: Changer, job_id: JobId, service: CurrentService, request: Request) -> JobView:
    """Cancel a job: its lanes leave at the next step. An ended job stays as it is."""
    return _view(service, await service.cancel(job_id, caller.sees), request, caller)


@routes.get("/images/{name}", response_class=Response, responses=_IMAGE)
async def image(
    caller: LinkedReader, name: Annotated[str, Path(examples=[f"{_JOB}-1-0.png"])], service: CurrentService
) -> Response:
    """An image file."""
    known = ImageName.parse(name)
    data = await service.image(known, caller.sees)
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(data, media_type=known.content_type, headers=headers)


@routes.get("/models")
async def models(caller: Reader, service: CurrentService) -> ModelList:
    """The models with what they draw, their defaults, limits and licences, and the names of what they draw with.

    The names are those of samplers, LoRAs, ControlNets, upscalers, detectors and embeddings.
    """
    return await asyncio.to_thread(_models, service, service.settings_for(caller))


_SAMPLER_CHOICES = [
    SamplerView(
        name=name, label=sampler.label, schedules={schedule: SCHEDULES[schedule] for schedule in sampler.schedules}
    )
    for name, sampler in SAMPLERS.items()
] + [
    SamplerView(
        name=name,
        label=sampler.label,
        schedules={schedule: WEBUI_SCHEDULES[schedule] for schedule in sampler.schedules},
    )
    for name, sampler in WEBUI_SAMPLERS.items()
]


def _models(service: Service, settings: Settings) -> ModelList:
    folders = service.folders()
    return ModelList(
        default=settings.default_model,
        models=[
            ModelView(
                name=name,
                alias_of=None if (alias := settings.aliases.get(name)) is None else alias.model,
                family=model.family,
                description=model.description,
                draws=model.draws,
                examples=model.examples,
                licence=model.licence,
                defaults=model.defaults,
                limits=model.limits,
                loras=model.loras,
                refiner=None if model.refiner is None else RefinerView(model=model.refiner, switch_at=model.switch_at),
            )
            for name, model in settings.generating().items()
        ],
        samplers=[name for name in NAMES if not is_webui(name)] + [*WEBUI_SAMPLERS],
        sampler_choices=_SAMPLER_CHOICES,
        loras=list(folders["loras"].names),
        controlnets=list(folders["controlnets"].names),
        ip_adapters=list(folders["ip_adapters"].names),
        vaes=list(folders["vaes"].names),
        upscalers=[LANCZOS, *folders["upscalers"].names],
        detectors={name: list(source.classes) for name, source in service.detectors.entries().items()},
        hires_upscalers=[*LATENT_UPSCALERS, *PIXEL_UPSCALERS, *folders["upscalers"].names],
        embeddings=list(folders["embeddings"].names),
        wildcards=list(service.wildcards.read()),
        skipped={name: dict(contents.skipped) for name, contents in folders.items() if contents.skipped},
        safety=settings.safety.mode,
    )
