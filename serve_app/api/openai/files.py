"""OpenAI's files: what batches are read from, pictures that their edits name, and the answers of batches.

    POST   /v1/files                      a form with `file` and `purpose`
    GET    /v1/files, /v1/files/{id}
    GET    /v1/files/{id}/content         the file itself, as a stream
    DELETE /v1/files/{id}

An upload is taken apart while it comes and goes into the image store part by part, so no memory grows with its size.
"""

import re
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from deployments.engine.errors import InvalidRequest
from serve_app.api.bodies import FILE_SCHEMA, FORM_TYPE, RequestBody, body_parts, media_type
from serve_app.api.openai.batch_lines import FILE_PREFIX
from serve_app.api.shared import CurrentService
from serve_app.auth.route_scopes import Changer, Reader
from serve_app.batches.batch import UPLOADED, FilePurpose, StoredFile
from serve_app.errors import BodyTooLarge, MalformedId, UnreadableRequest, UnsupportedMediaType
from serve_app.jobs.job import utc_now
from serve_app.schemas.validation import validated

_FILE_ID = re.compile(r"file-([0-9a-f]{32})", re.ASCII)
_ID_SCHEMA: JsonDict = {"pattern": f"^{_FILE_ID.pattern}$"}
EXAMPLE_ID = "file-019c7d3f2a51c0b7e64f9d20a83b5e17"

# of an upload besides its file, and of all its texts
_MOST_PARTS, _TEXT_BYTES = 16, 64 << 10

_CONTENT: dict[int | str, Any] = {200: {"content": {"application/octet-stream": {}}}}


class ExpiresAfter(BaseModel):
    """When a file is deleted: so many seconds after it was created."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class FileUpload(BaseModel):
    """The form of POST /v1/files, but for its file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    purpose: Literal["batch", "vision", "user_data"] = Field(
        description="batch: a file of requests; the others: a picture that an edit names by its id."
    )
    expires_after: ExpiresAfter | None = None


class FileView(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = Field(description="null: it is kept.")
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(BaseModel):
    """Files."""

    object: Literal["list"] = "list"
    data: list[FileView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class UploadForm(RequestBody):
    """A form that its route takes apart, while it comes."""

    model = FileUpload

    @property
    def content(self) -> dict[str, Any]:
        file = {"type": "object", "properties": {"file": FILE_SCHEMA}, "required": ["file"]}
        texts = {
            "type": "object",
            "properties": {
                "purpose": {"type": "string", "enum": list(UPLOADED)},
                "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                "expires_after[seconds]": {"type": "integer", "minimum": 3_600, "maximum": 2_592_000},
            },
            "required": ["purpose"],
        }
        return {FORM_TYPE: {"schema": {"allOf": [texts, file]}, "example": {"purpose": "vision"}}}

    async def __call__(self, request: Request) -> "Upload":
        if media_type(request) != FORM_TYPE:
            raise UnsupportedMediaType(f"the body must be a form: send it with Content-Type: {FORM_TYPE}")
        return Upload(request)


class Upload:
    """A form with one file.

    Attributes:
        texts: its texts by name, once the file is read.
        filename: as the client named it, likewise.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self.texts: dict[str, str] = {}
        self.filename: str | None = None

    async def file(self, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """The file, in parts.

        Raises:
            BodyTooLarge: it is longer than `max_bytes`.
            BodyTooSlow: the form didn't arrive in time.
            InvalidRequest, UnreadableRequest: it isn't such a form.
        """
        self._request.state.max_body_bytes = max_bytes + (1 << 20)
        length = texts_bytes = 0
        part: MultipartSegment | None = None
        text = b""
        try:
            _, options = parse_options_header(self._request.headers["content-type"])
            with PushMultipartParser(options["boundary"], strict=True, max_segment_count=_MOST_PARTS) as parser:
                async for chunk in body_parts(self._request):
                    for event in parser.parse(chunk):
                        if isinstance(event, MultipartSegment):
                            part, text = event, b""
                            if event.filename is not None:
                                self._begin_file(event)
                        elif part is None or event is None:
                            if part is not None and part.filename is None:
                                self._end_text(part.name, text)
                        elif part.filename is None:
                            texts_bytes += len(event)
                            if texts_bytes > _TEXT_BYTES:
                                raise UnreadableRequest(f"the form's texts are longer than {_TEXT_BYTES} bytes")
                            text += event
                        else:
                            length += len(event)
                            if length > max_bytes:
                                raise BodyTooLarge(f"the file is longer than {max_bytes} bytes", "file")
                            yield bytes(event)
        except (KeyError, MultipartError):
            raise UnreadableRequest("the body isn't a complete multipart form with its boundary in its type") from None

    def _begin_file(self, part: MultipartSegment) -> None:
        if part.name != "file":
            raise InvalidRequest(f"unknown file {part.name[:64]!a}; files: file", part.name[:64])
        if self.filename is not None:
            raise InvalidRequest("file comes twice", "file")
        self.filename = part.filename or "file"

    def _end_text(self, name: str, text: bytes) -> None:
        if name in self.texts:
            raise InvalidRequest(f"{name[:64]!a} comes twice", name[:64])
        try:
            self.texts[name] = text.decode()
        except UnicodeDecodeError:
            raise UnreadableRequest("a text of the form isn't UTF-8") from None


def _file_id(text: str) -> str:
    match = _FILE_ID.fullmatch(text)
    if match is None:
        raise MalformedId('a file\'s id is "file-" and 32 hexadecimal digits', "file_id")
    return match[1]


FileId = Annotated[str, Path(examples=[EXAMPLE_ID], json_schema_extra=_ID_SCHEMA), AfterValidator(_file_id)]


def file_id_of(text: str, field: str) -> str:
    """The id of a file that a body names. Raises InvalidRequest."""
    match = _FILE_ID.fullmatch(text)
    if match is None:
        raise InvalidRequest(f'{field} is {ascii(text)[:64]}; a file\'s id is "file-" and 32 hexadecimal digits', field)
    return match[1]


def file_view(file: StoredFile) -> FileView:
    """A file as its client sees it."""
    return FileView(
        id=f"{FILE_PREFIX}{file.id}",
        bytes=file.bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=None if file.expires_at is None else int(file.expires_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
    )


routes = APIRouter(prefix="/v1/files", tags=["OpenAI"])


@routes.post("")
async def upload(caller: Changer, form: Annotated[Upload, Depends(UploadForm())], service: CurrentService) -> FileView:
    """Upload a file: requests of a batch (`purpose` batch), or a picture (vision, user_data)."""
    settings, files, images = service.settings.batches, service.store.files, service.images
    bounds = {"max_files": settings.max_files, "max_bytes": settings.max_stored_bytes}
    await files.check(caller.tenant, **bounds)
    await images.check()
    file_id = service.store.new_id()
    length = await images.write_file(file_id, form.file(settings.max_file_bytes))
    async with images.kept_for_row(file_id):
        fields: dict[str, Any] = {name: text for name, text in form.texts.items() if "[" not in name}
        expiry = {
            name.removeprefix("expires_after[").removesuffix("]"): text
            for name, text in form.texts.items()
            if name.startswith("expires_after[")
        }
        asked = validated(FileUpload, fields | ({"expires_after": expiry} if expiry else {}), of_texts=True)
        if form.filename is None or length == 0:
            raise InvalidRequest("file is missing or empty: send it as a file of the form", "file")
        now = utc_now()
        ttl_s = service.settings.jobs.result_ttl_s if asked.expires_after is None else asked.expires_after.seconds
        file = StoredFile(
            id=file_id,
            tenant=caller.tenant,
            filename=form.filename[:255].encode(errors="replace").decode().replace("\0", ""),
            purpose=asked.purpose,
            bytes=length,
            created_at=now,
            expires_at=now + timedelta(seconds=ttl_s) if ttl_s else None,
        )
        await files.add(file, **bounds)
    return file_view(file)


@routes.get("")
async def all_files(
    caller: Reader,
    service: CurrentService,
    purpose: Annotated[str | None, Query(max_length=64, examples=["batch"])] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, examples=[100])] = 10_000,
    after: Annotated[
        Annotated[str, Field(json_schema_extra=_ID_SCHEMA)] | None, Query(max_length=64, examples=[EXAMPLE_ID])
    ] = None,
    order: Annotated[Literal["asc", "desc"], Query(examples=["desc"])] = "desc",
) -> FileList:
    """Files, newest first."""
    shown = [one for one in get_args(FilePurpose) if one != "matrix" and purpose in (None, one)]
    page = await service.store.files.page(
        tenant=caller.sees,
        purposes=shown,
        limit=limit + 1,
        after=None if after is None else _file_id(after),
        oldest_first=order == "asc",
    )
    data = [file_view(file) for file in page[:limit]]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(page) > limit,
    )


@routes.get("/{file_id}")
async def one_file(caller: Reader, file_id: FileId, service: CurrentService) -> FileView:
    """One file."""
    return file_view(await service.store.files.get(file_id, tenant=caller.sees))


@routes.get("/{file_id}/content", response_class=StreamingResponse, responses=_CONTENT)
async def content(caller: Reader, file_id: FileId, service: CurrentService, request: Request) -> Response:
    """What is in a file."""
    file = await service.store.files.get(file_id, tenant=caller.sees)
    headers = {"Content-Length": str(file.bytes)}
    if request.state.head:
        return Response(None, media_type="application/octet-stream")
    stream = service.images.read_file(file_id)
    first = await anext(stream, b"")  # what is missing is an answer of its own

    async def parts() -> AsyncGenerator[bytes, None]:
        yield first
        async for part in stream:
            yield part

    return StreamingResponse(parts(), media_type="application/octet-stream", headers=headers)


@routes.delete("/{file_id}")
async def delete(caller: Changer, file_id: FileId, service: CurrentService) -> FileDeleted:
    """Delete a file; not the input of a batch that hasn't ended."""
    await service.store.files.delete(file_id, tenant=caller.sees)
    await service.images.delete_job(file_id)
    return FileDeleted(id=f"{FILE_PREFIX}{file_id}")
