"""Structured logs: JSON lines on stderr. One line per request, written in batches; everything else through structlog.

No line holds a key, a token, a prompt or an answer: what is logged is named field by field.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any, Final

import orjson
import structlog

from gateway.metering.lines import request_line
from gateway.metering.record import UsageRecord

_BATCH_LINES: Final = 256


class RequestLog:
    """The access log. Records are gathered, and written as lines by `flush`, which the clock calls a few times a second."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._ended: list[UsageRecord] = []
        self._lines: list[bytes] = []
        self._lost = 0

    def ended(self, record: UsageRecord) -> None:
        """An admitted request has ended; the record does not change any more."""
        self._ended.append(record)
        if len(self._ended) >= _BATCH_LINES:
            self.flush()

    def refused(self, at_s: float, request_id: str, operation: str, status: int, code: str, reason: str, key_id: str | None) -> None:
        """A request was refused before admission. `reason` tells apart what the client sees as one answer."""
        fields = {"event": "refused", "at": round(at_s, 3), "request_id": request_id, "operation": operation, "key_id": key_id}
        self._lines.append(orjson.dumps(fields | {"status": status, "code": code, "reason": reason}, option=orjson.OPT_APPEND_NEWLINE))
        if len(self._lines) >= _BATCH_LINES:
            self.flush()

    def attempt_failed(self, at_s: float, request_id: str, model: str, backend: str, outcome: str) -> None:
        """A backend failed an attempt; the request may still succeed at another. `outcome`: one fixed word or a status."""
        fields = {"event": "attempt_failed", "at": round(at_s, 3), "request_id": request_id, "model": model}
        self._lines.append(orjson.dumps(fields | {"backend": backend, "outcome": outcome}, option=orjson.OPT_APPEND_NEWLINE))

    def shadowed(
        self, at_s: float, request_id: str, model: str, backend: str, outcome: str, status: int, duration_ms: float, tokens: int | None
    ) -> None:
        """The copy of a request has ended."""
        fields = {"event": "shadow", "at": round(at_s, 3), "request_id": request_id, "model": model, "backend": backend}
        more = {"outcome": outcome, "status": status, "duration_ms": round(duration_ms, 2), "completion_tokens": tokens}
        self._lines.append(orjson.dumps(fields | more, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        """Write what has gathered. Never raises: a log that cannot be written must not stop a request."""
        if not self._ended and not self._lines:
            return
        count = len(self._lines) + len(self._ended)
        data = b"".join(self._lines) + b"".join([_request_line(record) for record in self._ended])
        self._ended.clear()
        self._lines = []
        try:
            os.write(self._fd, data)
        except OSError:
            self._lost += count

    def take_lost(self) -> int:
        """Lines that could not be written since the last call."""
        lost, self._lost = self._lost, 0
        return lost


def _request_line(r: UsageRecord) -> bytes:
    return request_line(
        r.started_at, r.request_id, r.operation, r.model, r.backend, r.key_id, r.status, r.ending, r.attempts,
        r.prompt_tokens, r.completion_tokens, r.duration_ms, r.ttft_ms,
    )  # fmt: skip


def _places(exc_info: Any) -> str:
    """Where something went wrong and of what kind, innermost last. Without the words of the exception: they may quote a prompt or a key."""
    parts: list[str] = []
    error: BaseException | None = exc_info[1]
    while error is not None:
        frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
        parts.append("\n".join([*frames, type(error).__qualname__]))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\n".join(reversed(parts))


def _sorted_dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def configure_logs(level: str) -> None:
    """structlog and the standard library's loggers to JSON lines on stderr."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_places),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(serializer=_sorted_dumps),
        ],
        foreign_pre_chain=shared,
    )
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn.access", "httpx", "httpcore", "aiosqlite", "alembic", "sqlalchemy.engine"):
        logging.getLogger(noisy).setLevel("WARNING")
