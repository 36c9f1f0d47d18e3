"""Times in requests and answers: RFC 3339 in UTC, and durations such as 90s, 1h, 7d."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from gateway.errors import InvalidRequest

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_LONGEST_S = 100 * 366 * 86_400


def moment(at_s: float) -> datetime:
    """Unix seconds -> UTC, to the millisecond."""
    return datetime.fromtimestamp(round(at_s, 3), UTC)


def moment_or_none(at_s: float | None) -> datetime | None:
    return None if at_s is None else moment(at_s)


def before(text: str, now_s: float, param: str) -> float:
    """Unix seconds: this duration back, or this time."""
    duration_s = _duration_s(text)
    return _instant(text, param) if duration_s is None else now_s - duration_s


def after(text: str, now_s: float, param: str) -> float:
    """Unix seconds: this duration ahead, or this time."""
    duration_s = _duration_s(text)
    return _instant(text, param) if duration_s is None else now_s + duration_s


def duration_s(text: str, param: str) -> int:
    """Seconds in 90s, 15m, 1h, 7d, 2w."""
    seconds = _duration_s(text)
    if seconds is None:
        raise InvalidRequest(f"{param} is a duration such as 90s, 1h or 7d.", param=param)
    return seconds


def _duration_s(text: str) -> int | None:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return None
    return min(int(match[1]) * _UNITS_S[match[2]], _LONGEST_S)


def _instant(text: str, param: str) -> float:
    try:
        found = datetime.fromisoformat(text.strip())
        at_s = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        moment(at_s)  # some have no year that could be written
        return at_s
    except (ValueError, OverflowError):
        sentence = f"{param} is a duration such as 90s, 1h or 7d, or a time such as 2026-01-31T12:00:00Z."
        raise InvalidRequest(sentence, param=param) from None
