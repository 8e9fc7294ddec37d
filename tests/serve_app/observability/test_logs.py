import asyncio
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from serve_app.observability import logs

PROMPT = "SENTINEL-a-large-red-circle"
KEY = "sk-SENTINEL-key"


class Lines:
    """What was written, line by line."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in logs.OUR_LOGGERS}
    lines = Lines()
    logs.configure("INFO", lines.stream)
    yield lines
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = True


def test_a_line_is_json_with_time_level_and_ids(lines: Lines) -> None:
    log = logs.get_logger("serve_app.router")
    with logs.bound(request_id="r-1", job_id="j-1"):
        log.info("job accepted", steps=20, when=datetime(2026, 1, 1, tzinfo=UTC), sizes=(256, 256))
    log.warning("later")
    first, second = lines.parsed
    stamp = datetime.fromisoformat(first.pop("timestamp"))
    assert stamp.tzinfo is not None
    assert first == {
        "event": "job accepted",
        "level": "info",
        "logger": "serve_app.router",
        "request_id": "r-1",
        "job_id": "j-1",
        "steps": 20,
        "when": "2026-01-01 00:00:00+00:00",
        "sizes": [256, 256],
    }
    assert "request_id" not in second


async def test_tasks_keep_the_ids_they_were_started_with(lines: Lines) -> None:
    log = logs.get_logger("serve_app.jobs")

    async def job(name: str) -> None:
        with logs.bound(job_id=name):
            await asyncio.sleep(0)
            log.info("turn")

    with logs.bound(request_id="r"):
        await asyncio.gather(job("a"), job("b"))
    assert {(line["request_id"], line["job_id"]) for line in lines.parsed} == {("r", "a"), ("r", "b")}


class Request(BaseModel):
    prompt: str


@dataclass
class Other:
    text: str


def log_everything(log: Any) -> None:
    """Every way a prompt or a key has of getting into a line."""
    log("by key", prompt=PROMPT, negative_prompt=PROMPT)
    log("credentials", authorization=f"Bearer {KEY}", api_key=KEY)
    log("nested", request={"Prompt": PROMPT, "headers": [{"X-API-Key": KEY, "Authorization": KEY}]})
    log("objects", request=Request(prompt=PROMPT), other=Other(PROMPT), raw=PROMPT.encode(), error=ValueError(PROMPT))
    log("deep", a={"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"prompt": PROMPT}}}}}}}}})


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_no_prompt_and_no_key_at_info(lines: Lines, level: str) -> None:
    logs.configure(level, lines.stream)
    log_everything(logs.get_logger("serve_app.router").info)
    assert len(lines.parsed) == 5
    assert "SENTINEL" not in lines.text
    assert lines.parsed[0]["prompt"] == logs.REDACTED
    assert lines.parsed[3]["request"] == "<Request>"


def test_at_debug_prompts_may_be_seen_and_keys_never(lines: Lines) -> None:
    logs.configure("DEBUG", lines.stream)
    log_everything(logs.get_logger("serve_app.router").debug)
    assert PROMPT in lines.text
    assert KEY not in lines.text


def test_debug_lines_are_not_written_at_info(lines: Lines) -> None:
    logs.get_logger("serve_app.router").debug("hidden", prompt=PROMPT)
    assert lines.text == ""


def fail_quoting(prompt: str, key: str) -> None:
    try:
        {}[f"{prompt} and {key}"]
    except KeyError as cause:
        raise RuntimeError(f"while drawing {prompt}") from cause


def test_what_exceptions_quote_is_cut_out(lines: Lines) -> None:
    log = logs.get_logger("serve_app.router")
    with logs.sensitive(PROMPT, KEY, ""):
        try:
            fail_quoting(PROMPT, KEY)
        except RuntimeError:
            log.exception("failed")
            logging.getLogger("deployments.engine").exception("failed with %s", PROMPT, extra={"prompt": PROMPT})
    first, second = lines.parsed
    assert "SENTINEL" not in lines.text
    assert first["exception"][0]["exc_value"] == f"while drawing {logs.REDACTED}"
    assert "locals" not in first["exception"][0]["frames"][0]
    assert (second["event"], second["prompt"]) == (f"failed with {logs.REDACTED}", logs.REDACTED)


def test_a_line_is_written_once_whatever_other_handlers_there_are(lines: Lines) -> None:
    """As in a Serve replica: handlers on the root and on "ray.serve", and `configure` called again."""
    foreign = io.StringIO()
    handlers = {name: logging.StreamHandler(foreign) for name in ("", "ray.serve")}
    for name, handler in handlers.items():
        logging.getLogger(name).addHandler(handler)
    try:
        for _ in range(3):
            logs.configure("INFO", lines.stream)
        logs.get_logger("serve_app.router").info("once", prompt=PROMPT)
        logs.get_logger("elsewhere").info("also once")
        logging.getLogger("ray.serve").warning("not ours")
    finally:
        for name, handler in handlers.items():
            logging.getLogger(name).removeHandler(handler)
    assert [line["event"] for line in lines.parsed] == ["once", "also once"]
    assert "once" not in foreign.getvalue()
    assert "SENTINEL" not in foreign.getvalue()
