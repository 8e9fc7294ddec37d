"""OpenAI's batches.

    POST /v1/batches                  of an uploaded file
    GET  /v1/batches, /v1/batches/{id}
    POST /v1/batches/{id}/cancel

batch_lines.py has the lines, serve_app/batches/driver.py what drives them.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter
from pydantic.config import JsonDict

from serve_app.api.bodies import IdempotencyKey, JsonBody
from serve_app.api.openai.batch_lines import FILE_PREFIX, Endpoint
from serve_app.api.openai.files import EXAMPLE_ID as FILE_ID
from serve_app.api.openai.files import ExpiresAfter, file_id_of
from serve_app.api.service import Service
from serve_app.api.shared import CurrentService
from serve_app.auth.route_scopes import Changer, Reader
from serve_app.batches.batch import Batch, BatchState, LineCounts
from serve_app.errors import MalformedId
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.schemas.generation_request import RequestPart

_BATCH_ID = re.compile(r"batch_([0-9a-f]{32})", re.ASCII)
_ID_SCHEMA: JsonDict = {"pattern": f"^{_BATCH_ID.pattern}$"}
_EXAMPLE_ID = "batch_019c7d3f2a51c0b7e64f9d20a83b5e17"

_EXAMPLE: Mapping[str, Any] = {
    "input_file_id": FILE_ID,
    "endpoint": "/v1/images/generations",
    "completion_window": "24h",
    "metadata": {"name": "circles"},
}

# of a batch's metadata
_MOST_PAIRS = 16

_WINDOW_S = 86_400.0

# how the endpoints of these batches begin
_DIALECT = "/v1/"

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]

_STATUS: TypeAdapter[Status] = TypeAdapter(Status)


class OpenAIBatchRequest(RequestPart):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: dict[MetadataKey, MetadataValue] | None = Field(default=None, max_length=_MOST_PAIRS)
    output_expires_after: ExpiresAfter | None = None


class BatchProblem(BaseModel):
    """Why a batch failed."""

    code: str
    message: str
    line: int | None = Field(default=None, description="Of the input file, from 1.")
    param: str | None = None


class BatchProblems(BaseModel):
    """Why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchProblem]


class RequestCounts(BaseModel):
    """How many lines are answered with an image, and how many with an error."""

    total: int
    completed: int
    failed: int


class OpenAIBatchView(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: None = None
    errors: BatchProblems | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    usage: None = None
    device_seconds: float = Field(description="Device seconds of its jobs so far; a field of ours.")


class OpenAIBatchList(BaseModel):
    """Batches."""

    object: Literal["list"] = "list"
    data: list[OpenAIBatchView]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _batch_id(text: str) -> str:
    match = _BATCH_ID.fullmatch(text)
    if match is None:
        raise MalformedId('a batch\'s id is "batch_" and 32 hexadecimal digits', "batch_id")
    return match[1]


BatchId = Annotated[str, Path(examples=[_EXAMPLE_ID], json_schema_extra=_ID_SCHEMA), AfterValidator(_batch_id)]


def batch_view(batch: Batch, counts: LineCounts) -> OpenAIBatchView:
    """A batch as its client sees it."""

    def at(moment: datetime | None, *states: BatchState) -> int | None:
        shown = moment is not None and (not states or batch.state in states)
        return int(moment.timestamp()) if moment is not None and shown else None

    cancel = BatchState.CANCELLING, BatchState.CANCELLED
    finalize = BatchState.FINALIZING, BatchState.EXPIRING, BatchState.COMPLETED, BatchState.EXPIRED
    problems = None
    if batch.problems is not None:
        problems = BatchProblems(data=[BatchProblem.model_validate(one) for one in batch.problems])
    return OpenAIBatchView(
        id=f"batch_{batch.id}",
        endpoint=batch.endpoint,
        errors=problems,
        input_file_id=f"{FILE_PREFIX}{batch.input_file}",
        completion_window=batch.options["completion_window"],
        status=_status(batch.state),
        output_file_id=_file(batch.output_file),
        error_file_id=_file(batch.error_file),
        created_at=int(batch.created_at.timestamp()),
        in_progress_at=at(batch.begun_at),
        expires_at=int(batch.expires_at.timestamp()),
        finalizing_at=at(batch.closed_at, *finalize),
        completed_at=at(batch.ended_at, BatchState.COMPLETED),
        failed_at=at(batch.ended_at, BatchState.FAILED),
        expired_at=at(batch.ended_at, BatchState.EXPIRED),
        cancelling_at=at(batch.closed_at, *cancel),
        cancelled_at=at(batch.ended_at, BatchState.CANCELLED),
        request_counts=RequestCounts(total=batch.total, completed=counts.completed, failed=counts.failed),
        metadata=batch.options["metadata"],
        device_seconds=round(counts.device_s, 3),
    )


def _status(state: BatchState) -> Status:
    """As OpenAI calls it, which has no word for a batch that is finalized because its time is over."""
    return _STATUS.validate_python("finalizing" if state is BatchState.EXPIRING else state.value)


def _file(file_id: str | None) -> str | None:
    return None if file_id is None else f"{FILE_PREFIX}{file_id}"


routes = APIRouter(prefix="/v1/batches", tags=["OpenAI"])


@routes.post("")
async def create(
    caller: Changer,
    body: Annotated[OpenAIBatchRequest, Depends(JsonBody(OpenAIBatchRequest, _EXAMPLE))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
    response: Response,
) -> OpenAIBatchView:
    """Draw the requests of an uploaded file, each as a job of priority `batch`, within 24 hours."""
    expiry = body.output_expires_after
    mount = str(request.scope.get("root_path", "")).rstrip("/")
    batch, replayed = await service.store.batches.create(
        service.store.new_id(),
        tenant=caller.tenant,
        key_id=None if caller.key is None else caller.key.id,
        endpoint=body.endpoint,
        input_file=file_id_of(body.input_file_id, "input_file_id"),
        options={
            "completion_window": body.completion_window,
            "metadata": body.metadata,
            "output_expires_s": None if expiry is None else expiry.seconds,
            "root": f"{request.url.scheme}://{request.url.netloc}{mount}",
        },
        window_s=_WINDOW_S,
        max_unfinished=service.settings.batches.max_unfinished,
        key=None if key is None else RequestKey.named(key, {"batch": body.identity()}),
    )
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return await _view(service, batch)


@routes.get("")
async def all_batches(
    caller: Reader,
    service: CurrentService,
    limit: Annotated[int, Query(ge=1, le=100, examples=[20])] = 20,
    after: Annotated[
        Annotated[str, Field(json_schema_extra=_ID_SCHEMA)] | None, Query(max_length=64, examples=[_EXAMPLE_ID])
    ] = None,
) -> OpenAIBatchList:
    """Batches, newest first."""
    after_id = None if after is None else _batch_id(after)
    page = await service.store.batches.page(tenant=caller.sees, dialect=_DIALECT, limit=limit, after=after_id)
    counts = await service.store.batches.counts(page.batches)
    data = [batch_view(batch, counts[batch.id]) for batch in page.batches]
    return OpenAIBatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.more,
    )


@routes.get("/{batch_id}")
async def one_batch(caller: Reader, batch_id: BatchId, service: CurrentService) -> OpenAIBatchView:
    """A batch: how far it is, and the files of its answers once it has ended."""
    batch = await service.store.batches.get(batch_id, tenant=caller.sees, dialect=_DIALECT)
    return await _view(service, batch)


@routes.post("/{batch_id}/cancel")
async def cancel(caller: Changer, batch_id: BatchId, service: CurrentService) -> OpenAIBatchView:
    """Cancel a batch: no request begins any more, and running ones leave at their next step."""
    batch, running = await service.store.batches.cancel(batch_id, tenant=caller.sees, dialect=_DIALECT)
    for job_id in running:
        service.runner.cancel(job_id)
    return await _view(service, batch)


async def _view(service: Service, batch: Batch) -> OpenAIBatchView:
    return batch_view(batch, (await service.store.batches.counts([batch]))[batch.id])
