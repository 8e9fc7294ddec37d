"""A job's trace, as a collector gets it by OTLP over HTTP: whole, over two routers, and without a prompt."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.jobs.test_resuming import completed, hanging


class Collector:
    """An OTLP receiver; `bodies` as they came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # http.server's name for it
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def spans(self) -> dict[str, list[Span]]:
        """By trace, the hex form of its id."""
        found: dict[str, list[Span]] = {}
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.trace_id.hex(), []).append(span)
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    thread = threading.Thread(target=one.server.serve_forever)
    thread.start()
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


@pytest.fixture
def settings(raw_settings: dict[str, Any], collector: Collector) -> Settings:
    raw_settings["jobs"] |= {"state_every": 1, "state_interval_s": 0.01, "lease_s": 0.2, "heartbeat_s": 0.1}
    raw_settings["traces"] = {"endpoint": collector.url}
    return Settings.model_validate(raw_settings)


@pytest.fixture
async def fronts(stages: Stages, settings: Settings) -> AsyncIterator[tuple[AsyncExitStack, list[Front]]]:
    """Two routers on one store; the traces are sent when they are closed."""
    async with AsyncExitStack() as both:
        yield both, [await both.enter_async_context(front(settings, stages, owner=name)) for name in ("one", "other")]


def tree(spans: list[Span]) -> dict[str, list[str]]:
    """The names of each span's children, by its name."""
    names = {span.span_id: span.name for span in spans}
    children: dict[str, list[str]] = {}
    for span in spans:
        children.setdefault(names.get(span.parent_span_id, ""), []).append(span.name)
    return {name: sorted(of) for name, of in children.items()}


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


async def test_a_job_is_one_trace(fronts: tuple[AsyncExitStack, list[Front]], collector: Collector) -> None:
    closing, (one, _) = fronts
    answer = await one.generate("SENTINEL-PROMPT", model="demo-sdxl", n=2, refiner=True, seed=2)
    job_id = answer.json()["job_id"]
    assert answer.json()["status"] == "complete"
    await closing.aclose()
    spans = collector.spans()[job_id]
    assert tree(spans) == {
        "": ["job"],
        "job": ["attempt"],
        "attempt": ["image", "image"],
        "image": [
            "classify",
            "classify",
            "denoise",
            "denoise",
            "denoise",
            "denoise",
            "encode",
            "store",
        ],  # one is withheld
        "denoise": 4 * ["decode"] + 4 * ["step"] + 4 * ["wait"],
    }
    [job] = [span for span in spans if span.name == "job"]
    assert job.span_id.hex() == job_id[16:]
    assert attributes(job)["darkroom.job.state"] == "complete"
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.name == "encode" or job.start_time_unix_nano <= span.start_time_unix_nano
    stages = [attributes(span)["darkroom.stage"] for span in spans if span.name == "denoise"]
    assert sorted(stages) == ["sdxl_base", "sdxl_base", "sdxl_refiner", "sdxl_refiner"]
    assert b"SENTINEL" not in b"".join(collector.bodies)


async def test_a_job_that_goes_on_elsewhere_stays_in_its_trace(
    fronts: tuple[AsyncExitStack, list[Front]], collector: Collector
) -> None:
    closing, (one, other) = fronts
    job_id = await hanging(one, "endless once SENTINEL-PROMPT", seed=2)
    await one.service.runner.drain(0)
    await completed(other, job_id)
    await closing.aclose()
    spans = collector.spans()[job_id]
    assert tree(spans)["job"] == ["attempt", "attempt"]
    assert sum(span.name == "store" for span in spans) == 1
    assert b"SENTINEL" not in b"".join(collector.bodies)


async def test_a_failure_is_told_by_its_code_alone(
    fronts: tuple[AsyncExitStack, list[Front]], collector: Collector
) -> None:
    closing, (one, _) = fronts
    answer = await one.generate("poison SENTINEL-PROMPT", seed=2)
    await closing.aclose()
    assert answer.json()["status"] == "failed"
    spans = {span.name: span for span in collector.spans()[answer.json()["job_id"]]}
    assert spans["job"].status.message == "numerical_failure"
    assert spans["denoise"].status.message == "NumericalFailure"
    assert not spans["denoise"].events
    assert b"SENTINEL" not in b"".join(collector.bodies)


async def test_a_part_of_the_jobs_can_be_traced(
    raw_settings: dict[str, Any], stages: Stages, collector: Collector
) -> None:
    raw_settings["traces"] = {"endpoint": collector.url, "sampled": 0.0}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        assert (await one.generate("x", seed=2)).json()["status"] == "complete"
    assert collector.bodies == []


async def test_an_outage_of_the_collector_harms_no_job(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["traces"] = {"endpoint": "http://127.0.0.1:9/v1/traces"}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        assert (await one.generate("x", seed=2)).json()["status"] == "complete"
