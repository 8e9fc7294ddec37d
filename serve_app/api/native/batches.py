"""Batches by a matrix, with their contact sheet and all their images as a ZIP archive.

POST   /batches
GET    /batches, /batches/{batch_id}
DELETE /batches/{batch_id}                cancels it
GET    /batches/{batch_id}/sheet          a PNG file
GET    /batches/{batch_id}/images         a ZIP file, as a stream
"""

import asyncio
import io
import json
import secrets
import zipfile
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, Field
from pydantic.config import JsonDict

from serve_app.api.bodies import IdempotencyKey, JsonBody
from serve_app.api.native.job_view import ErrorView, Paths, Status, status_of_job
from serve_app.api.outcome import error_of, shown_images
from serve_app.api.service import Service
from serve_app.api.shared import CurrentService
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import Changer, ChangerFromImage, Reader
from serve_app.batches.batch import Batch, BatchLine, LineCounts, StoredFile
from serve_app.batches.matrix import Matrix
from serve_app.batches.matrix_lines import ENDPOINT, read_matrix
from serve_app.errors import MalformedId, NotFound
from serve_app.images.contact_sheet import ContactSheet, layout
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.jobs.events import EventHub
from serve_app.jobs.job import JOB_ID, Job, is_job_id, utc_now
from serve_app.planning.dynamic_prompts import with_chosen_texts
from serve_app.planning.resolve import DRAWN_SEEDS
from serve_app.schemas.batch_request import BatchRequest

_EXAMPLE_ID = "019c7d3f2a51c0b7e64f9d20a83b5e17"
_ID_SCHEMA: JsonDict = {"pattern": f"^{JOB_ID.pattern}$"}

# jobs looked up at once
_CHUNK = 100

_EXAMPLE: Mapping[str, Any] = {
    "request": {"prompt": "a large red circle on a blue background", "steps": 20, "width": 256, "height": 256},
    "axes": [
        {"field": "seed", "values": [2, 4, 6]},
        {"replace": "red", "values": ["red", "green"], "label": "colour"},
    ],
    "name": "circles",
}

_PNG: dict[int | str, Any] = {200: {"content": {"image/png": {}}}}
_ZIP: dict[int | str, Any] = {200: {"content": {"application/zip": {}}}}

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "expiring", "cancelling", "completed", "failed", "expired", "cancelled"
]


class AxisView(BaseModel):
    """An axis."""

    name: str
    values: list[str] = Field(description="As the contact sheet names them.")


class CellView(BaseModel):
    """A cell of the matrix."""

    index: int
    places: list[int] = Field(description="The place along each axis, from 0.")
    job_id: str | None = Field(description="null before it is a job, and where it was refused.")
    status: Status | Literal["waiting", "refused", "deleted"]
    image_url: str | None
    error: ErrorView | None


class BatchView(BaseModel):
    """A batch, how far it is, and what it has cost so far."""

    batch_id: str
    name: str
    status: BatchStatus
    created_at: str
    expires_at: str
    ended_at: str | None
    total: int
    completed: int
    failed: int
    unfinished: int = Field(description="Cells that are jobs which haven't ended; the others wait for their turn.")
    fraction: float
    device_seconds: float


class BatchDetails(BatchView):
    """A batch with its matrix, and some of its cells."""

    request: dict[str, Any] = Field(description="As it was sent, without pictures; with its seed.")
    axes: list[AxisView]
    cells: list[CellView]


class BatchList(BaseModel):
    """Batches, newest first."""

    batches: list[BatchView]
    next_cursor: str | None


def _batch_id(text: str) -> str:
    if not is_job_id(text):
        raise MalformedId("a batch's id has 32 hexadecimal digits", "batch_id")
    return text


BatchId = Annotated[str, Path(examples=[_EXAMPLE_ID], json_schema_extra=_ID_SCHEMA), AfterValidator(_batch_id)]


routes = APIRouter()


@routes.post("/batches", status_code=202, responses={202: {"model": BatchView}})
async def create(
    caller: ChangerFromImage,
    body: Annotated[BatchRequest, Depends(JsonBody(BatchRequest, _EXAMPLE))],
    key: IdempotencyKey,
    service: CurrentService,
    response: Response,
) -> BatchView:
    """Draw every combination of the axes' values, each as a job of priority `batch`."""
    store, settings = service.store, service.settings
    request_key = None if key is None else RequestKey.named(key, {"batch": body.identity()})
    seeded = "seed" in body.request or any(axis.field == "seed" for axis in body.axes)
    if not seeded:  # of all cells, so that they differ by their axes alone
        request = {**body.request, "seed": secrets.randbelow(DRAWN_SEEDS)}
        body = body.model_copy(update={"request": request})
    matrix = await asyncio.to_thread(Matrix.of, body, settings.a1111.styles, settings.batches.max_lines)
    if "dynamic_prompts" in body.request or any(axis.field == "dynamic_prompts" for axis in body.axes):
        await asyncio.to_thread(_check_texts, matrix, service)
    await service.images.check()
    content = matrix.model_dump_json().encode()

    async def parts() -> AsyncGenerator[bytes, None]:
        yield content

    file = StoredFile(store.new_id(), caller.tenant, "matrix.json", "matrix", len(content), utc_now(), None)
    await service.images.write_file(file.id, parts())
    async with service.images.kept_for_row(file.id):
        batch, replayed = await store.batches.create(
            store.new_id(),
            tenant=caller.tenant,
            key_id=None if caller.key is None else caller.key.id,
            endpoint=ENDPOINT,
            input_file=file.id,
            own_input=file,
            options={"name": body.name, "total": matrix.total},
            window_s=body.window_s,
            max_unfinished=settings.batches.max_unfinished,
            key=request_key,
        )
    if replayed:
        await service.images.discard(file.id)
        response.headers["Idempotent-Replayed"] = "true"
    return BatchView(**_summary(batch, await _counts_of(service, batch)))


def _check_texts(matrix: Matrix, service: CurrentService) -> None:
    """Raise InvalidRequest for the first cell whose prompts' variants can't be chosen. Reads files."""
    settings, wildcards = service.settings, service.wildcards.read()
    for request in map(matrix.request, range(matrix.total)):
        read = request.without_comments() if settings.prompts.comments else request
        with_chosen_texts(read, 0, wildcards, settings.limits)


@routes.get("/batches")
async def batches(
    caller: Reader,
    service: CurrentService,
    limit: Annotated[int, Query(ge=1, le=100, examples=[20])] = 20,
    cursor: Annotated[
        Annotated[str, Field(json_schema_extra=_ID_SCHEMA)] | None, Query(max_length=64, examples=[_EXAMPLE_ID])
    ] = None,
) -> BatchList:
    """Batches, newest first."""
    after = None if cursor is None else _batch_id(cursor)
    page = await service.store.batches.page(tenant=caller.sees, dialect=ENDPOINT, limit=limit, after=after)
    counts = await service.store.batches.counts(page.batches)
    return BatchList(
        batches=[BatchView(**_summary(batch, counts[batch.id])) for batch in page.batches],
        next_cursor=page.batches[-1].id if page.more else None,
    )


@routes.get("/batches/{batch_id}")
async def one_batch(
    caller: Reader,
    batch_id: BatchId,
    service: CurrentService,
    request: Request,
    offset: Annotated[int, Query(ge=0, le=1_000_000, examples=[0], description="The first cell shown.")] = 0,
    limit: Annotated[int, Query(ge=0, le=1_000, examples=[100], description="Most cells shown.")] = 200,
) -> BatchDetails:
    """A batch: how far it is, its matrix, and some of its cells."""
    batch = await _batch_of(service, caller, batch_id)
    matrix = await read_matrix(service.images, batch)
    lines = await service.store.batches.lines(batch.id)
    paths = Paths.of(request, caller, service.settings.access.image_link_s)
    cells: list[CellView] = []
    for start in range(offset, min(matrix.total, offset + limit), _CHUNK):
        chunk = range(start, min(matrix.total, offset + limit, start + _CHUNK))
        jobs = await _jobs(service, lines, chunk)
        cells += [_cell(matrix, index, lines.get(index), jobs, service.hub, paths) for index in chunk]
    axes = [AxisView(name=axis.name, values=list(matrix.labels(index))) for index, axis in enumerate(matrix.asked.axes)]
    return BatchDetails(
        **_summary(batch, await _counts_of(service, batch)),
        request=_shown(matrix.asked.request),
        axes=axes,
        cells=cells,
    )


@routes.delete("/batches/{batch_id}")
async def cancel(caller: Changer, batch_id: BatchId, service: CurrentService) -> BatchView:
    """Cancel a batch: no cell begins any more, and running ones leave at their next step."""
    batch, running = await service.store.batches.cancel(batch_id, tenant=caller.sees, dialect=ENDPOINT)
    for job_id in running:
        service.runner.cancel(job_id)
    return BatchView(**_summary(batch, await _counts_of(service, batch)))


@routes.get("/batches/{batch_id}/sheet", response_class=Response, responses=_PNG)
async def sheet(
    caller: Reader,
    batch_id: BatchId,
    service: CurrentService,
    side: Annotated[int, Query(ge=16, le=1024, examples=[192], description="Of a cell's longer side, pixels.")] = 192,
) -> Response:
    """The contact sheet, of what is drawn so far: smaller pictures where it would be too large."""
    batch = await _batch_of(service, caller, batch_id)
    matrix = await read_matrix(service.images, batch)
    lines = await service.store.batches.lines(batch.id)
    async with service.pictures.acquire(0):
        return Response(await _sheet(service, matrix, lines, side), media_type="image/png")


@routes.get("/batches/{batch_id}/images", response_class=StreamingResponse, responses=_ZIP)
async def images(caller: Reader, batch_id: BatchId, service: CurrentService) -> Response:
    """The images that are drawn so far as a ZIP archive, with a list of them."""
    batch = await _batch_of(service, caller, batch_id)
    matrix = await read_matrix(service.images, batch)
    lines = await service.store.batches.lines(batch.id)
    headers = {"Content-Disposition": f'attachment; filename="{batch.id}.zip"'}
    return StreamingResponse(_archive(service, matrix, lines), media_type="application/zip", headers=headers)


async def _batch_of(service: Service, caller: Caller, batch_id: str) -> Batch:
    return await service.store.batches.get(batch_id, tenant=caller.sees, dialect=ENDPOINT)


async def _counts_of(service: Service, batch: Batch) -> LineCounts:
    return (await service.store.batches.counts([batch]))[batch.id]


def _summary(batch: Batch, counts: LineCounts) -> dict[str, Any]:
    total: int = batch.options["total"]
    return {
        "batch_id": batch.id,
        "name": batch.options["name"],
        "status": batch.state.value,
        "created_at": batch.created_at.isoformat(),
        "expires_at": batch.expires_at.isoformat(),
        "ended_at": _text(batch.ended_at),
        "total": total,
        "completed": counts.completed,
        "failed": counts.failed,
        "unfinished": counts.unfinished,
        "fraction": round((counts.completed + counts.failed) / total, 4),
        "device_seconds": round(counts.device_s, 3),
    }


def _shown(value: Any) -> Any:
    """A part of a request without its pictures."""
    if isinstance(value, dict):
        return {name: "…" if name in ("image", "mask") else _shown(member) for name, member in value.items()}
    return [_shown(member) for member in value] if isinstance(value, list) else value


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


async def _jobs(service: Service, lines: Mapping[int, BatchLine], cells: range) -> Mapping[str, Job]:
    job_ids = [lines[cell].job_id for cell in cells if cell in lines]
    return await service.store.known([job_id for job_id in job_ids if job_id is not None])


def _cell(
    matrix: Matrix, index: int, line: BatchLine | None, jobs: Mapping[str, Job], hub: EventHub, paths: Paths
) -> CellView:
    job = None if line is None or line.job_id is None else jobs.get(line.job_id)
    status: Status | Literal["waiting", "refused", "deleted"] = "waiting"
    error: ErrorView | None = None
    url: str | None = None
    if job is not None:
        status = status_of_job(job, hub.latest(job.id))
        failure = error_of(job) if job.state.terminal else None
        error = None if failure is None else ErrorView(code=failure.code, message=str(failure))
        url = next((paths.image(str(image.name)) for image in shown_images(job)), None)
    elif line is not None and line.job_id is not None:
        status = "deleted"
    elif line is not None:
        status = "refused"
        error = ErrorView(code=line.error_code or "", message=line.error_message or "")
    return CellView(
        index=index,
        places=list(matrix.places(index)),
        job_id=None if line is None else line.job_id,
        status=status,
        image_url=url,
        error=error,
    )


async def _sheet(service: Service, matrix: Matrix, lines: Mapping[int, BatchLine], side: int) -> bytes:
    """The contact sheet as a PNG file. Raises InvalidRequest, StoreUnavailable."""
    sizes = (*matrix.sizes, 1)
    columns = matrix.labels(0)
    rows = matrix.labels(1) if len(matrix.sizes) > 1 else ("",)
    per_page = sizes[0] * sizes[1]
    pages = [_page_title(matrix, page * per_page) for page in range(matrix.total // per_page)]
    largest = (1, 1)
    for start in range(0, matrix.total, _CHUNK):
        jobs = await _jobs(service, lines, range(start, min(matrix.total, start + _CHUNK)))
        drawn = [(job.request["width"], job.request["height"]) for job in jobs.values()]
        largest = max([largest, *drawn], key=lambda size: size[0] * size[1])
    plan = layout(columns, rows, pages, largest, side, service.settings.limits.max_image_pixels)
    paper = await asyncio.to_thread(ContactSheet, plan)
    for start in range(0, matrix.total, _CHUNK):
        chunk = range(start, min(matrix.total, start + _CHUNK))
        jobs = await _jobs(service, lines, chunk)
        for cell in chunk:
            file, note = await _picture(service, lines.get(cell), jobs)
            page, place = divmod(cell, per_page)
            row, column = divmod(place, sizes[0])
            await asyncio.to_thread(paper.put, page, row, column, file, note)
    return await asyncio.to_thread(paper.to_png)


def _page_title(matrix: Matrix, cell: int) -> str:
    """The values of the axes that are neither columns nor rows."""
    places = list(enumerate(matrix.places(cell)))[2:]
    return ", ".join(f"{matrix.asked.axes[axis].name}: {matrix.labels(axis)[place]}" for axis, place in places)


async def _picture(service: Service, line: BatchLine | None, jobs: Mapping[str, Job]) -> tuple[bytes | None, str]:
    """A cell's first image, or why there is none."""
    if line is None:
        return None, "waiting"
    if line.job_id is None:
        return None, line.error_code or ""
    job = jobs.get(line.job_id)
    if job is None:
        return None, "deleted"
    images = shown_images(job)
    if not images:
        return None, job.error_code or job.state.value
    try:
        return await service.images.read(images[0].name), ""
    except NotFound:
        return None, "deleted"


class _Outlet(io.RawIOBase):
    """What zipfile writes into: a pipe whose bytes are taken as they come."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> bytes:
        """All that came since the last call."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


async def _archive(service: Service, matrix: Matrix, lines: Mapping[int, BatchLine]) -> AsyncGenerator[bytes, None]:
    """A ZIP archive in parts: the images, uncompressed as they are files that can't be made smaller, and their list."""
    outlet = _Outlet()
    listed: list[dict[str, Any]] = []
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
        for start in range(0, matrix.total, _CHUNK):
            chunk = range(start, min(matrix.total, start + _CHUNK))
            jobs = await _jobs(service, lines, chunk)
            for cell in chunk:
                job = jobs.get(lines[cell].job_id or "") if cell in lines else None
                for number, image in enumerate([] if job is None else shown_images(job)):
                    name = f"{cell:05}-{number}.{image.name.extension}"
                    try:
                        data = await service.images.read(image.name)
                    except NotFound:  # deleted meanwhile
                        continue
                    moment = (utc_now() if job is None else job.created_at).timetuple()[:6]
                    await asyncio.to_thread(archive.writestr, zipfile.ZipInfo(name, moment), data)
                    listed.append({"file": name, "cell": matrix.title(cell), "seed": image.seed})
                    yield outlet.take()
        archive.writestr("images.json", json.dumps(listed, ensure_ascii=False, indent=1))
    yield outlet.take()
