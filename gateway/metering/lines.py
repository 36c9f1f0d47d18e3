"""The lines of a ledger segment, as bytes: JSON arrays that end in a newline. Written here, and read back. Those of the request log, too.

Three are written for every request, and two of them read again to be booked, so this module has a form in C beside it (lines.c), which
`build_native.py` compiles and the import of this module takes where it is there. Both do the same: times (Unix seconds) and durations
(ms) are written to six places, what is no such number as null.
"""

from __future__ import annotations

from typing import Any

import orjson

_APPEND_NEWLINE = orjson.OPT_APPEND_NEWLINE
_BEGIN_MARK, _END_MARK = '["B","', '["E","'
_ID_AT = len(_END_MARK)
_END_FIELDS = 27
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


def request_line(
    started_at: float,
    request_id: str,
    operation: str,
    model: str,
    backend: str | None,
    key_id: str | None,
    status: int,
    ending: str,
    attempts: int,
    prompt_tokens: int,
    completion_tokens: int,
    duration_ms: float,
    ttft_ms: float | None,
) -> bytes:
    """Of the request log (`gateway.metering.log`): an object."""
    return orjson.dumps(
        {
            "event": "request",
            "at": _rounded(started_at),
            "request_id": request_id,
            "operation": operation,
            "model": model,
            "backend": backend,
            "key_id": key_id,
            "status": status,
            "ending": ending,
            "attempts": attempts,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "duration_ms": _rounded(duration_ms),
            "ttft_ms": _rounded(ttft_ms),
        },
        option=_APPEND_NEWLINE,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not abs(value) < _MOST else round(value, 6) + 0.0  # never -0.0


def parse_lines(data: bytes) -> tuple[list[list[Any]], dict[str, str], list[str]]:
    """What whole lines say: a list for each field of the ENDs, in the order of their lines; BEGIN lines by request id, without those whose
    END is here too; the request ids of the ENDs whose BEGIN is not here. ValueError where a line is not exactly as this version writes it.

    In C, a value that is the same as in one of the ENDs before it mostly is the same object.
    """
    ends: list[str] = []
    ended: list[str] = []
    begun: dict[str, str] = {}
    begun_before: list[str] = []
    for line in data.decode().split("\n"):
        if not line:
            continue
        request_id = line[_ID_AT : line.index('"', _ID_AT)]
        if line.startswith(_END_MARK) and line[-1] == "]":
            ends.append(line[_ID_AT - 1 : -1])
            ended.append(request_id)
            if begun.pop(request_id, None) is None:
                begun_before.append(request_id)
        elif line.startswith(_BEGIN_MARK):
            begun[request_id] = line
        else:
            raise ValueError("not lines as this version writes them")
    values: list[Any] = orjson.loads(f"[{','.join(ends)}]")
    columns = [values[at::_END_FIELDS] for at in range(_END_FIELDS)]
    # As many values as records have fields, and an id where each record begins: no line has more or fewer.
    if len(values) != len(ended) * _END_FIELDS or columns[0] != ended:
        raise ValueError("not lines as this version writes them")
    return columns, begun, begun_before
