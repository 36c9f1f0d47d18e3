"""The lines of a ledger segment, as bytes: JSON arrays that end in a newline.

Two are written for every request, so this module has a form in C beside it (lines.c), which `build_native.py` compiles and the import of
this module takes where it is there. Both write the same: times (Unix seconds) and durations (ms) to six places, what is no such number as
null.
"""

from __future__ import annotations

import orjson

_APPEND_NEWLINE = orjson.OPT_APPEND_NEWLINE
_MOST = 9e9  # beyond it a double has no six places


def begin_line(
    request_id: str,
    started_at: float,
    operation: str,
    key_id: str | None,
    user_id: str,
    model: str,
    revision: int,
    client_request_id: str | None,
    reserved_tokens: int,
    reserved_pusd: int,
    slot: int,
    prompt_tokens: int,
    team_id: str | None,
    experiment: str | None,
    arm: str | None,
) -> bytes:
    """Admission. `slot`: where `gateway.metering.progress` says how far the request has come; `prompt_tokens`: as they were reserved."""
    return orjson.dumps(
        (
            "B", request_id, _rounded(started_at), operation, key_id, user_id, model, revision, client_request_id,
            reserved_tokens, reserved_pusd, slot, prompt_tokens, team_id, experiment, arm,
        ),
        option=_APPEND_NEWLINE,
    )  # fmt: skip


def end_line(
    request_id: str,
    started_at: float,
    operation: str,
    key_id: str | None,
    user_id: str,
    model: str,
    revision: int,
    client_request_id: str | None,
    backend: str | None,
    attempts: int,
    status: int,
    ending: str,
    prompt_tokens: int,
    completion_tokens: int,
    token_source: str,
    cost_pusd: int,
    duration_ms: float,
    ttft_ms: float | None,
    queue_ms: float,
    connect_ms: float | None,
    experiment: str | None,
    arm: str | None,
    team_id: str | None,
    cached_tokens: int,
    reasoning_tokens: int,
    price: str | None,
    tried: str | None,
) -> bytes:
    """The ending: the whole record, in the order of its fields."""
    return orjson.dumps(
        (
            "E", request_id, _rounded(started_at), operation, key_id, user_id, model, revision, client_request_id,
            backend, attempts, status, ending, prompt_tokens, completion_tokens, token_source, cost_pusd,
            _rounded(duration_ms), _rounded(ttft_ms), _rounded(queue_ms), _rounded(connect_ms), experiment, arm,
            team_id, cached_tokens, reasoning_tokens, price, tried,
        ),
        option=_APPEND_NEWLINE,
    )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None or not abs(value) < _MOST else round(value, 6)
