"""Traces: one OpenTelemetry trace for each job, whichever routers its attempts run in.

A job's id is its trace's id, and its last half the id of the trace's first span. So an attempt in another router
continues the trace without being told of it, and a trace is found by the job's id.

    job                         from its acceptance to its end
    └── attempt                 one for each router that ran it
        └── image               one for each image
            ├── encode          of the first image: the prompt
            ├── denoise         one for each stage
            │   ├── wait, step, decode
            ├── upscale, classify, store

Times are this router's, and durations within a stage the stage's own. No attribute holds a prompt.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracerProvider,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState

_SPAN_BITS = (1 << 64) - 1
_NANOSECONDS = 1_000_000_000
# of the job whose first span is being created
_job_id: ContextVar[int | None] = ContextVar("darkroom_traced_job", default=None)


class _JobIds(RandomIdGenerator):
    """Random ids, but for a job's first span."""

    def generate_trace_id(self) -> int:
        job_id = _job_id.get()
        return super().generate_trace_id() if job_id is None else job_id

    def generate_span_id(self) -> int:
        job_id = _job_id.get()
        return super().generate_span_id() if job_id is None else _first_span(job_id)


class JobTraces:
    """The traces of one router's jobs.

    Args:
        router: this router's id.
        endpoint: URL of a collector that takes OTLP over HTTP; None traces nothing.
        sampled: fraction of the jobs that are traced; all routers choose the same ones.
    """

    def __init__(self, router: str, endpoint: str | None = None, sampled: float = 1.0) -> None:
        self._provider: TracerProvider | None = None
        if endpoint is not None:
            self._provider = TracerProvider(
                resource=Resource({"service.name": "darkroom", "service.instance.id": router}),
                sampler=TraceIdRatioBased(sampled),
                id_generator=_JobIds(),
            )
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = (self._provider or NoOpTracerProvider()).get_tracer("darkroom")

    @contextmanager
    def attempt(self, job_id: str) -> Iterator[Span]:
        """The span of an attempt, which is current within the block."""
        number = int(job_id, 16)
        first = SpanContext(number, _first_span(number), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
        parent = set_span_in_context(NonRecordingSpan(first))
        with self._tracer.start_as_current_span("attempt", parent, record_exception=False) as span:
            yield span

    @contextmanager
    def span(self, name: str, **attributes: AttributeValue) -> Iterator[Span]:
        """A span below the current one, which is current within the block.

        An error of the block is its status, by its class alone: messages may name what a prompt names.
        """
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def past(self, durations: Mapping[str, float], begin_ns: int) -> None:
        """Spans below the current one that are over, one after the other.

        Args:
            durations: seconds of each, by its name.
            begin_ns: nanoseconds since the epoch at the first one's start.
        """
        for name, seconds in durations.items():
            end_ns = begin_ns + round(seconds * _NANOSECONDS)
            self._tracer.start_span(name, start_time=begin_ns).end(end_ns)
            begin_ns = end_ns

    def ended(self, job: Job) -> None:
        """A job has ended, here or elsewhere: its first span."""
        number = int(job.id, 16)
        token = _job_id.set(number)
        try:
            attributes: dict[str, AttributeValue] = {
                "darkroom.job.state": job.state.value,
                "darkroom.job.attempts": job.fence,
                "darkroom.tenant": job.tenant,
            }
            span = self._tracer.start_span("job", Context(), attributes=attributes, start_time=_ns(job.created_at))
        finally:
            _job_id.reset(token)
        if job.state is JobState.FAILED:
            span.set_status(Status(StatusCode.ERROR, job.error_code))
        span.end(time.time_ns() if job.finished_at is None else _ns(job.finished_at))

    def close(self) -> None:
        """Send what isn't sent yet. Waits for the collector: call it in a thread."""
        if self._provider is not None:
            self._provider.shutdown()


def _first_span(number: int) -> int:
    """The id of the first span of a job whose id is `number`; 0 would be none."""
    return number & _SPAN_BITS or 1


def _ns(moment: datetime) -> int:
    """Nanoseconds since the epoch; exact, because a float has no room for microseconds of today."""
    return round(moment.timestamp() * 1_000_000) * 1_000
