"""Lines of a report as they are shown: by name, as CSV, as JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from gateway.limits.budget import format_usd
from gateway.store.usage import UsageLine

NAMES = {
    "key": "key_id", "model": "model", "user": "user_id", "team": "team_id", "day": "day", "hour": "hour", "backend": "backend",
    "ending": "ending", "arm": "arm", "version": "revision",
}  # fmt: skip
COUNTED = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost")


def fields(by: str, line: UsageLine) -> dict[str, Any]:
    """A line by name, what it is of first. Money: a decimal string in USD."""
    shown: dict[str, Any] = {"experiment": line.experiment} if by == "arm" else {}
    shown[NAMES[by]] = int(line.group) if by == "version" else line.group or None
    shown["requests"] = line.requests
    shown["prompt_tokens"] = line.prompt_tokens
    shown["completion_tokens"] = line.completion_tokens
    shown["cached_tokens"] = line.cached_tokens
    shown["reasoning_tokens"] = line.reasoning_tokens
    shown["cost"] = format_usd(line.cost_pusd)
    return shown


def as_csv(by: str, lines: Iterable[UsageLine], headed: bool) -> str:
    """RFC 4180, with a header if `headed`."""
    text = io.StringIO()
    writer = csv.writer(text)
    if headed:
        writer.writerow([*(["experiment"] if by == "arm" else []), NAMES[by], *COUNTED])
    writer.writerows(fields(by, line).values() for line in lines)
    return text.getvalue()


def as_json_lines(by: str, lines: Iterable[UsageLine], _headed: bool = False) -> str:
    return "".join(json.dumps(fields(by, line), ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
