"""What of the metrics is kept in the database, so that plots need no other system, and what it adds up to between two readings.

Four labels and no more: model, backend, operation, status class. The names of models come from the route table alone, as in `names`;
labels beyond the four are added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from gateway.metering.names import DURATION_BUCKETS_S, TTFT_BUCKETS_S

Kind = Literal["counter", "gauge", "histogram"]
Label = Literal["model", "backend", "operation", "status"]
LABELS: tuple[Label, ...] = ("model", "backend", "operation", "status")
MOST_BUCKETS = 20

# (metric, (model, backend, operation, status)); "" = the metric has no such label.
Series = tuple[str, tuple[str, str, str, str]]
# By series: [value], of a histogram [observations, those in each bucket ...].
Figures = dict[Series, list[float]]


@dataclass(frozen=True, slots=True)
class Sampled:
    """`source`: the name in the exposition, of a histogram without `_bucket`; `only`: labels that its lines must have."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[Label, ...]
    help: str
    source: str
    only: Mapping[str, str] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.source}_bucket" if self.bounds else self.source


def _of(name: str, kind: Kind, unit: str, labels: tuple[Label, ...], text: str, bounds: tuple[float, ...] = ()) -> Sampled:
    return Sampled(name, kind, unit, labels, text, name, bounds=bounds)


def _tokens(which: str) -> Sampled:
    text = f"{which.capitalize()} tokens of ended requests."
    return Sampled(f"gateway_{which}_tokens_total", "counter", "tokens", ("model",), text, "gateway_tokens_total", {"type": which})


SAMPLED: Mapping[str, Sampled] = {
    one.name: one
    for one in (
        _of("gateway_requests_total", "counter", "requests", LABELS, "Admitted requests that have ended."),
        _of("gateway_refusals_total", "counter", "requests", ("operation",), "Requests refused before admission."),
        _of("gateway_limit_refusals_total", "counter", "requests", (), "Requests refused by a limit."),
        _of("gateway_retries_total", "counter", "attempts", ("model",), "Attempts beyond the first of a request."),
        _tokens("prompt"),
        _tokens("completion"),
        _of("gateway_cost_usd_total", "counter", "USD", ("model",), "Cost of ended requests; exact sums are in the usage reports."),
        _of("gateway_requests_in_flight", "gauge", "requests", ("model",), "Requests admitted and not ended."),
        _of("gateway_ledger_waiting_bytes", "gauge", "bytes", (), "Bytes of the ledgers that are not in the database yet."),
        _of(
            "gateway_request_duration_seconds", "histogram", "seconds", ("model", "operation"),
            "Time from the request's head to the last byte handed to the client.", DURATION_BUCKETS_S,
        ),
        _of(
            "gateway_time_to_first_token_seconds", "histogram", "seconds", ("model",),
            "Time from the request's head to the first event of a stream.", TTFT_BUCKETS_S,
        ),
    )
}  # fmt: skip
LINES = frozenset(one.line for one in SAMPLED.values())
"""Names of the exposition's lines that are read."""


def read(lines: Iterable[tuple[str, Mapping[str, str], float]]) -> Figures:
    """(name, labels, value) as the exposition has them, added up by what is kept. What is not a number is left out."""
    figures: Figures = {}
    for name, labels, value in lines:
        if not math.isfinite(value):
            continue
        for one in _BY_LINE.get(name, ()):
            if all(labels.get(label) == wanted for label, wanted in one.only.items()):
                _add(figures, one, labels, value)
    for (name, _), values in figures.items():
        if SAMPLED[name].bounds:  # the exposition's buckets hold all that the smaller ones do
            values[1:] = [values[1], *(high - low for low, high in pairwise(values[1:]))]
    return figures


def between(before: Figures, now: Figures) -> tuple[Figures, bool]:
    """What was added, gauges as they are; nothing of what did not move. And whether the server began anew: all is new then.

    Counters never fall while it runs, and begin at nothing together. (Sums of fractions may by their last digit: they are made of several
    processes' files in any order.)
    """
    anew = any(
        SAMPLED[series[0]].kind != "gauge" and values[0] > now.get(series, (0.0,))[0] * (1 + 1e-9) for series, values in before.items()
    )
    added: Figures = {}
    for series, values in now.items():
        if SAMPLED[series[0]].kind != "gauge" and not anew and series in before:
            values = [max(0.0, value - old) for value, old in zip(values, before[series], strict=True)]
        if any(values):
            added[series] = values
    return added, anew


def _add(figures: Figures, one: Sampled, labels: Mapping[str, str], value: float) -> None:
    series = (one.name, _labels(one, labels))
    values = figures.setdefault(series, [0.0] * (2 + len(one.bounds) if one.bounds else 1))
    if not one.bounds:
        values[0] += value
        return
    limit = float(labels["le"])
    if math.isinf(limit):
        values[0] += value
        values[-1] += value
    elif limit in one.bounds:
        values[1 + one.bounds.index(limit)] += value


def _labels(one: Sampled, labels: Mapping[str, str]) -> tuple[str, str, str, str]:
    model, backend, operation, status = (labels.get(label, "") if label in one.labels else "" for label in LABELS)
    return model, backend, operation, status


def _by_line() -> dict[str, list[Sampled]]:
    found: dict[str, list[Sampled]] = {}
    for one in SAMPLED.values():
        found.setdefault(one.line, []).append(one)
    return found


_BY_LINE: Mapping[str, list[Sampled]] = _by_line()
