"""Logs: one JSON object a line on stderr, with the ids of the request and the job, and without prompts.

`configure` gives the loggers of our own packages one handler and no propagation, so that in a Ray Serve replica, where
"ray.serve" has its own handlers, a line is written once. It serves structlog's loggers (`get_logger`) and stdlib's.

Redaction is the last step, on the finished structure: values of certain keys, objects without a JSON form (whose repr
might contain secrets), and every occurrence of a text passed to `sensitive`, tracebacks included. At DEBUG prompts are
shown, credentials never.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any, TextIO
from uuid import UUID

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer

OUR_LOGGERS = ("darkroom", "serve_app", "deployments")

REDACTED = "[redacted]"

_PROMPT_KEYS = frozenset(
    {"prompt", "prompts", "negative_prompt", "negative_prompts", "infotext", "inputs"}
    | {"prompt_2", "negative_prompt_2"}
)
_CREDENTIAL_KEYS = frozenset(
    {"authorization", "proxy_authorization", "x_api_key", "api_key", "cookie", "set_cookie", "password", "secret"}
)
# shorter texts would match parts of harmless words
_SENSITIVE_CHARS = 4
_MAX_DEPTH = 8

_sensitive: ContextVar[tuple[str, ...]] = ContextVar("darkroom_sensitive", default=())


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Write our loggers' lines from `level` on to `stream` (stderr); a second call replaces the first."""
    handler = _OurHandler(stream or sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
            ],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                structlog.contextvars.merge_contextvars,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False, max_frames=20)),
                redact,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    for name in OUR_LOGGERS:
        logger = logging.getLogger(name)
        for old in [old for old in logger.handlers if isinstance(old, _OurHandler)]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of a module, by its `__name__`: log.info("job accepted", steps=20). Configures nothing."""
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name if name.split(".")[0] in OUR_LOGGERS else f"darkroom.{name}"),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
    )
    return logger


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Add ids to every line within the block and in tasks started there: bound(request_id=…, job_id=…)."""
    with structlog.contextvars.bound_contextvars(**ids):
        yield


@contextmanager
def sensitive(*texts: str) -> Iterator[None]:
    """Redact texts from every line above DEBUG, within the block and in tasks started there.

    For texts that exceptions of libraries may quote: prompts, keys.
    """
    token = _sensitive.set(_sensitive.get() + tuple(text for text in texts if len(text) >= _SENSITIVE_CHARS))
    try:
        yield
    finally:
        _sensitive.reset(token)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor, described in the module's docstring."""
    debug = event.get("level") == "debug"
    keys = _CREDENTIAL_KEYS if debug else _CREDENTIAL_KEYS | _PROMPT_KEYS
    texts = () if debug else tuple(sorted(_sensitive.get(), key=len, reverse=True))
    return {str(key): _clean(str(key), value, keys, texts, _MAX_DEPTH) for key, value in event.items()}


class _OurHandler(logging.StreamHandler[TextIO]):
    """A class of its own, by which `configure` finds its handlers."""


def _clean(key: str, value: Any, keys: frozenset[str], texts: tuple[str, ...], depth: int) -> Any:
    if key.lower().replace("-", "_") in keys:
        return REDACTED
    match value:
        case None | bool() | int() | float():
            return value
        case Enum() | date() | UUID() | PurePath() | str():
            text = str(value)
            for secret in texts:
                text = text.replace(secret, REDACTED)
            return text
        case Mapping() if depth:
            return {str(name): _clean(str(name), item, keys, texts, depth - 1) for name, item in value.items()}
        case list() | tuple() | set() | frozenset() if depth:
            return [_clean("", item, keys, texts, depth - 1) for item in value]
        case _:
            return f"<{type(value).__qualname__}>"
