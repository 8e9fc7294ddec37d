"""Cases made from the OpenAPI document, fitting it and not: each answer is one that the document knows, and no crash.

A few hundred, always the same, by default; `make fuzz` asks for thousands of new ones.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as conformance

from serve_app.auth.route_scopes import routes_of
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys

ROOT = Path(__file__).parents[3]

# cases of each call that takes anything, in each of the four runs below
CASES = int(os.environ.get("FUZZ_CASES", "5"))

# the only errors above 499 that a healthy service with room may answer: the request's own timeout_s was too short
ALLOWED = {(504, "deadline_exceeded")}

# what no answer may hold
TELL_TALE = ("Traceback", 'File "', "site-packages", str(ROOT))

CHECKED = [
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
]

Send = Callable[[httpx.Request], httpx.Response]


@contextmanager
def sending(one_settings: Settings, stages: Stages, headers: dict[str, str]) -> Iterator[tuple[Front, Send]]:
    """A front whose event loop runs while a request is answered; one that isn't within 20 s hangs."""
    with asyncio.Runner() as loop:
        opened = front(one_settings, stages)
        one = loop.run(opened.__aenter__())

        async def answer(request: httpx.Request) -> httpx.Response:
            async with asyncio.timeout(20):
                return await one.http.send(request)

        def send(request: httpx.Request) -> httpx.Response:
            request.headers.update(headers)
            return loop.run(answer(request))

        try:
            yield one, send
        finally:
            loop.run(opened.__aexit__(None, None, None))


def code_of(body: Any) -> str:
    """An error's code, in whichever dialect."""
    error = body.get("error_type") or body["error"]
    return str(error["code"] if isinstance(error, dict) else error)


def check(case: Any, response: httpx.Response, secret: Path) -> None:
    if response.status_code >= 500:
        assert (response.status_code, code_of(response.json())) in ALLOWED, response.text
    text = response.content.decode(errors="replace")
    assert not [word for word in (*TELL_TALE, str(secret)) if word in text], text
    case.validate_response(response, checks=CHECKED)


def as_httpx(case: Any) -> httpx.Request | None:
    """The case as a request; None where no client could send it."""
    try:
        prepared = requests.Request(**case.as_transport_kwargs(base_url="http://127.0.0.1")).prepare()
        return httpx.Request(
            prepared.method or "", prepared.url or "", headers=list(prepared.headers.items()), content=prepared.body
        )
    except (requests.exceptions.RequestException, httpx.InvalidURL, UnicodeEncodeError):
        return None


def run(strategy: st.SearchStrategy[Any], cases: int, send: Send, secret: Path) -> int:
    """Send so many cases and look at the answers; how many there were."""
    sent = 0

    @settings(
        max_examples=cases,
        derandomize="FUZZ_CASES" not in os.environ,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case: Any) -> None:
        nonlocal sent
        request = as_httpx(case)
        if request is not None:
            check(case, send(request), secret)
            sent += 1

    each()
    return sent


@pytest.mark.parametrize("keyed", [False, True], ids=["without-keys", "with-keys"])
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_document_knows(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path, mode: GenerationMode, keyed: bool
) -> None:
    headers = {}
    if keyed:
        headers = bearer(with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ)["alice"])
        raw_settings["access"] |= {"requests": None, "generations": None}
    with sending(Settings.model_validate(raw_settings), stages, headers) as (one, send):
        known = send(one.http.build_request("POST", "/generate", json={"prompt": "x", "seed": 2})).json()["job_id"]
        real = {"job_id": known, "name": f"{known}-1-0.png", "model_id": "demo-sd15"}
        schema = schemathesis.openapi.from_dict(send(one.http.build_request("GET", "/openapi.json")).json())
        sent = calls = 0
        for found in schema.get_all_operations():
            operation = found.ok()
            calls += 1
            gaps = {name: value for name, value in real.items() if f"{{{name}}}" in operation.path}
            takes = bool(operation.body or operation.query or operation.path_parameters or operation.headers)
            strategies = [operation.as_strategy(mode)]
            if gaps:
                strategies.append(operation.as_strategy(mode, path_parameters=gaps))
            for strategy in strategies:
                try:
                    sent += run(strategy, CASES if takes else 1, send, tmp_path)
                except Unsatisfiable:  # nothing that it could be given is wrong
                    assert mode is GenerationMode.NEGATIVE
        assert calls == len(routes_of(one.app)) - 12  # documentation, playground, further paths
        print(f"{sent} cases, {mode.value}, keys: {keyed}")  # noqa: T201  # for `make fuzz`
        assert sent >= 10 * CASES
