"""OpenAI's batches: a file of requests in, files of answers out, line by line.

    in    {"custom_id", "method": "POST", "url": the batch's endpoint, "body"}
    out   {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}

A line that has an image is in the output file, every other one in the error file: with the response that it would have
had by itself, or with an error if it never began. Both files have the order of the input.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import DarkroomError, InvalidRequest
from serve_app.api.bodies import parse_json
from serve_app.api.errors import openai_error_body, openai_status
from serve_app.api.native.job_view import Paths
from serve_app.api.openai.answer import Address, image_answer
from serve_app.api.openai.edits import OpenAIEditRequest, files_asked, form_of_json
from serve_app.api.openai.request import OpenAIImageRequest
from serve_app.api.outcome import error_named, error_of
from serve_app.api.service import Service
from serve_app.batches.batch import Batch, BatchLine, BatchState, StoredFile
from serve_app.batches.dialect import AnswerFiles, LineRequest
from serve_app.batches.jsonl import RawLine, json_lines
from serve_app.errors import BatchRefused, NotFound, UnknownFile, UnknownJob
from serve_app.jobs.job import Job, is_job_id, utc_now
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated

Endpoint = Literal["/v1/images/generations", "/v1/images/edits"]

FILE_PREFIX = "file-"

# how many of an input's mistakes are told
_MOST_PROBLEMS = 100

# jobs looked up at once
_CHUNK = 100

# what a line that never began, or was stopped, is answered with
_UNANSWERED = {
    BatchState.CANCELLING: ("batch_cancelled", "This request was not drawn: the batch was cancelled."),
    BatchState.EXPIRING: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}


class OpenAIBatchLine(BaseModel):
    """A line of a batch's input."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class _Span(NamedTuple):
    """Where a line is in the input file, in bytes, and its custom_id."""

    start: int
    length: int
    custom_id: str


class OpenAIBatches:
    """A BatchDialect."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def read(self, batch: Batch) -> "OpenAILines":
        """The lines of a batch. Raises BatchRefused with what is wrong with them, UnknownFile, StoreUnavailable."""
        settings = self._service.settings.batches
        spans: list[_Span] = []
        problems: list[Mapping[str, Any]] = []
        known: set[str] = set()
        async for raw in json_lines(self._service.images.read_file(batch.input_file), settings.max_line_bytes):
            if len(spans) >= settings.max_lines:
                message = f"the file has more than {settings.max_lines} requests"
                raise BatchRefused.of({"code": "too_many_requests", "message": message, "line": raw.number})
            try:
                line = await asyncio.to_thread(self._line, raw.text)
                _check(line, raw, batch.endpoint, known)
            except BatchRefused as error:
                problems += error.problems
            except DarkroomError as error:
                code = "invalid_json_line" if error.field is None else "invalid_request"
                problems.append({"code": code, "message": str(error), "line": raw.number, "param": error.field})
            else:
                known.add(line.custom_id)
                spans.append(_Span(raw.start, len(raw.text), line.custom_id))
            if len(problems) >= _MOST_PROBLEMS:
                break
        if not spans and not problems:
            problems.append({"code": "empty_file", "message": "the file holds no requests: one JSON object a line"})
        if problems:
            raise BatchRefused.of(*problems)
        return OpenAILines(self._service, batch, spans)

    def _line(self, text: bytes) -> OpenAIBatchLine:
        return validated(OpenAIBatchLine, parse_json(text, self._service.settings.limits))


def _check(line: OpenAIBatchLine, raw: RawLine, endpoint: str, known: set[str]) -> None:
    """Raise BatchRefused where a line doesn't fit its batch."""
    if line.url != endpoint:
        message = f"url is {ascii(line.url)[:64]}: the batch is of {endpoint}"
        raise BatchRefused.of({"code": "mismatched_url", "message": message, "line": raw.number, "param": "url"})
    if line.custom_id in known:
        message = f"custom_id {ascii(line.custom_id)[:64]} comes twice"
        raise BatchRefused.of(
            {"code": "duplicate_custom_id", "message": message, "line": raw.number, "param": "custom_id"}
        )


@dataclass(frozen=True, slots=True)
class OpenAILines:
    """BatchLines of a file."""

    service: Service
    batch: Batch
    spans: list[_Span]

    @property
    def total(self) -> int:
        """Their number."""
        return len(self.spans)

    async def request(self, line: int) -> LineRequest:
        """A line's request. Raises InvalidRequest, UnreadableRequest, UnknownFile, StoreUnavailable."""
        body = await self._body(line)
        if body.get("stream"):
            raise InvalidRequest("stream is true: the answer to a line of a batch is a line of a file", "stream")
        if self.batch.endpoint == "/v1/images/edits":
            asked: OpenAIImageRequest
            asked, request = await self._edit(body)
        else:
            asked = validated(OpenAIImageRequest, body)
            request = asked.generation()
        model = self.service.settings.openai.aliases.get(request.model or "", request.model)
        return LineRequest(request.model_copy(update={"model": model}), asked.native_names)

    async def _edit(self, body: dict[str, Any]) -> tuple[OpenAIEditRequest, GenerationRequest]:
        files = OpenAIEditRequest.files
        for name in (*files, "images"):
            value = body.get(name)
            if isinstance(value, list):
                body[name] = [await self._with_file(name, one) for one in value]
            elif value is not None:
                body[name] = await self._with_file(name, value)
        limits = self.service.settings.limits
        form = await asyncio.to_thread(form_of_json, body, files)
        asked = OpenAIEditRequest.parse_form(form, limits)
        image, mask = files_asked(form, files)
        return asked, await asyncio.to_thread(asked.generation_from, image, mask, limits.max_image_pixels)

    async def _with_file(self, name: str, value: object) -> object:
        """A picture, with the contents of the file that it names by `file_id`."""
        if not isinstance(value, dict) or "file_id" not in value:
            return value
        file_id = str(value["file_id"]).removeprefix(FILE_PREFIX)
        if not is_job_id(file_id):
            raise UnknownFile("no such file", f"{name}.file_id")
        file = await self.service.store.files.get(file_id, tenant=self.batch.tenant)
        most = self.service.settings.limits.max_image_body_bytes
        if file.bytes > most:
            raise InvalidRequest(f"the file has {file.bytes} bytes, a picture at most {most}", f"{name}.file_id")
        data = b"".join([part async for part in self.service.images.read_file(file_id)])
        return {"image_url": f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"}

    async def _body(self, line: int) -> dict[str, Any]:
        span = self.spans[line]
        text = await self.service.images.read_part(self.batch.input_file, span.start, span.length)
        parsed = await asyncio.to_thread(parse_json, text, self.service.settings.limits)
        body: dict[str, Any] = parsed["body"]
        return body

    async def answer(self, batch: Batch, ends: Mapping[int, BatchLine]) -> AnswerFiles:
        """Write the output file and the error file. Raises StoreUnavailable."""
        answered: set[int] = set()
        output = await self._write("output", lambda: self._outputs(ends, answered))
        errors = await self._write("errors", lambda: self._errors(batch.state, ends, answered))
        return AnswerFiles(output, errors)

    async def _write(self, name: str, lines: Callable[[], AsyncGenerator[bytes, None]]) -> StoredFile | None:
        """Write a file, if it has a line."""
        store, images, now = self.service.store, self.service.images, utc_now()
        file_id = store.new_id()
        length = await images.write_file(file_id, lines())
        if length == 0:
            await images.delete_job(file_id)
            return None
        ttl_s = self.batch.options.get("output_expires_s") or self.service.settings.jobs.result_ttl_s
        return StoredFile(
            id=file_id,
            tenant=self.batch.tenant,
            filename=f"batch_{self.batch.id}_{name}.jsonl",
            purpose="batch_output",
            bytes=length,
            created_at=now,
            expires_at=now + timedelta(seconds=ttl_s) if ttl_s else None,
        )

    async def _outputs(self, ends: Mapping[int, BatchLine], answered: set[int]) -> AsyncGenerator[bytes, None]:
        """The lines that have an image; they are `answered` then."""
        for chunk in range(0, self.total, _CHUNK):
            lines = [line for line in range(chunk, min(self.total, chunk + _CHUNK)) if line in ends]
            jobs = await self._jobs(ends, lines)
            for line in lines:
                job = jobs.get(ends[line].job_id or "")
                if job is None or error_of(job) is not None:
                    continue
                try:
                    text = await self._response(line, job)
                except NotFound:  # its client has deleted it meanwhile
                    continue
                answered.add(line)
                yield text

    async def _response(self, line: int, job: Job) -> bytes:
        model = OpenAIEditRequest if self.batch.endpoint == "/v1/images/edits" else OpenAIImageRequest
        body = await self._body(line)
        fields = {name: value for name, value in body.items() if name not in ("image", "images", "mask")}
        answer = await image_answer(self.service, job, validated(model, fields), self._address())
        return self._text(line, {"status_code": 200, "body": answer}, None)

    def _address(self) -> Address:
        keys, key_id = self.service.keys, self.batch.key_id
        key = None if keys is None or key_id is None else keys.by_id(key_id)
        root = str(self.batch.options["root"])
        return Paths(root, key, self.service.settings.access.image_link_s).image

    async def _errors(
        self, state: BatchState, ends: Mapping[int, BatchLine], answered: set[int]
    ) -> AsyncGenerator[bytes, None]:
        """The lines that aren't `answered`."""
        for chunk in range(0, self.total, _CHUNK):
            lines = [line for line in range(chunk, min(self.total, chunk + _CHUNK)) if line not in answered]
            jobs = await self._jobs(ends, [line for line in lines if line in ends])
            for line in lines:
                error = self._error(ends.get(line), jobs)
                if state in _UNANSWERED and (error is None or error.code == "cancelled"):
                    code, message = _UNANSWERED[state]
                    yield self._text(line, None, {"code": code, "message": message})
                    continue
                if error is None:
                    raise RuntimeError(f"line {line} of a batch that was drawn to its end never began")
                status = openai_status(error)
                yield self._text(line, {"status_code": status, "body": openai_error_body(error, status)}, None)

    def _error(self, end: BatchLine | None, jobs: Mapping[str, Job]) -> DarkroomError | None:
        """What a line is answered with; None if it never began."""
        if end is None:
            return None
        if end.job_id is None:
            return error_named(end.error_code, end.error_message, end.error_field)
        job = jobs.get(end.job_id)
        error = None if job is None else error_of(job)
        return error or UnknownJob("the job of this request was deleted")

    async def _jobs(self, ends: Mapping[int, BatchLine], lines: list[int]) -> Mapping[str, Job]:
        return await self.service.store.known([job_id for line in lines if (job_id := ends[line].job_id) is not None])

    def _text(self, line: int, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
        request_id = f"{self.batch.id}-{line}"
        answer = {
            "id": f"batch_req_{request_id}",
            "custom_id": self.spans[line].custom_id,
            "response": None if response is None else {"request_id": request_id, **response},
            "error": error,
        }
        return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
