"""POST /verify: what an image file says of how it was made, and whether that is to be believed."""

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from serve_app.api.bodies import (
    FILE_SCHEMA,
    FORM_TYPE,
    JSON_TYPE,
    PIXEL,
    RequestBody,
    media_type,
    read_form,
    read_json,
    schema_of,
)
from serve_app.api.native.job_view import Links, Paths
from serve_app.api.service import Service
from serve_app.api.shared import CurrentService
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import ReaderOfImage
from serve_app.config.provenance import DWT_DCT_SVD
from serve_app.errors import UnknownJob
from serve_app.images.decode import decoded
from serve_app.jobs.job import Job, is_job_id
from serve_app.provenance.verification import Verification, verify
from serve_app.provenance.watermark import watermark_of
from serve_app.schemas.validation import validated

_IMAGE = "image"


class VerifyRequest(BaseModel):
    """A question about an image."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: str = Field(description="A PNG, JPEG or WebP file as base64 or a data URL. Never fetched from a URL.")


class JobOfImage(BaseModel):
    """A job of the caller's that drew an image."""

    job_id: str
    links: Links


class VerifiedImage(Verification):
    """What an image file says of how it was made, and the job that drew it."""

    job: JobOfImage | None = Field(description="null where it isn't known here, or isn't the caller's to see.")


class VerifyBody(RequestBody):
    """Reads JSON, or a form with the file `image`."""

    model = VerifyRequest

    @property
    def content(self) -> dict[str, Any]:
        form = {
            "type": "object",
            "properties": {_IMAGE: FILE_SCHEMA},
            "required": [_IMAGE],
            "additionalProperties": False,
        }
        return {
            JSON_TYPE: {"schema": schema_of(self.model), "example": {_IMAGE: PIXEL}},
            FORM_TYPE: {"schema": form, "example": {}},  # which a file can't be part of
        }

    async def __call__(self, request: Request) -> VerifyRequest:
        if media_type(request) != FORM_TYPE:
            return validated(VerifyRequest, await read_json(request))
        form = await read_form(request)
        files = form.files.get(_IMAGE, ())
        unknown = [name for name in (*form.texts, *form.lists, *form.files) if name != _IMAGE or name in form.texts]
        if unknown or len(files) != 1:
            raise InvalidRequest("the form must have one part, the file image", _IMAGE)
        return VerifyRequest(image=base64.b64encode(files[0]).decode())


routes = APIRouter()


@routes.post("/verify")
async def verify_image(
    caller: ReaderOfImage,
    body: Annotated[VerifyRequest, Depends(VerifyBody())],
    service: CurrentService,
    request: Request,
) -> VerifiedImage:
    """What an image file says of how it was made: its credentials, watermark, source type, parameters."""
    read_watermark = watermark_of(DWT_DCT_SVD).read if service.watermark is None else service.watermark.read
    anchors = "" if service.signer is None else service.signer.anchors
    data = await asyncio.to_thread(decoded, _IMAGE, body.image)
    async with service.pictures.acquire(0):
        verification = await asyncio.to_thread(
            verify, data, read_watermark, service.settings.limits.max_image_pixels, anchors
        )
    job = await _job_of(verification, service, request, caller)
    return VerifiedImage(job=job, **dict(verification))


async def _job_of(verification: Verification, service: Service, request: Request, caller: Caller) -> JobOfImage | None:
    """By credentials that are good; without them by this service's watermark."""
    marking = service.settings.provenance.watermark
    credentials, watermark = verification.credentials, verification.watermark
    job: Job | None = None
    if credentials is not None and credentials.state in ("trusted", "valid") and is_job_id(credentials.job_id or ""):
        try:
            job = await service.store.get(credentials.job_id or "", tenant=caller.sees)
        except UnknownJob:
            return None
    elif watermark is not None and marking is not None and watermark.service_id == marking.service_id:
        found = await service.store.page(tenant=caller.sees, limit=2, id_end=watermark.job_end)
        job = found.jobs[0] if len(found.jobs) == 1 else None
    if job is None:
        return None
    paths = Paths.of(request, caller, service.settings.access.image_link_s)
    return JobOfImage(job_id=job.id, links=paths.links(job.id))
