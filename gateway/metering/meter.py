"""From records to figures. `record` only counts; `flush` hands the counts to Prometheus, a few times a second and before each scrape.

Counting is a dictionary look-up and a few additions on plain numbers: Prometheus objects lock and check at every step, which would cost a
tenth of a relayed request.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from gateway.metering.names import DURATION_BUCKETS_S, TTFT_BUCKETS_S

if TYPE_CHECKING:
    from prometheus_client import Histogram

    from gateway.metering.names import Metrics
    from gateway.metering.record import UsageRecord


_BATCH_RECORDS: Final = 256
# As `routing.health` names them.
_STATES: Mapping[str, int] = MappingProxyType({"closed": 0, "half_open": 1, "open": 2, "resting": 3})


class _Counts:
    """What requests of one (model, backend, operation, status, ending) have added since the last flush."""

    __slots__ = ("completion", "cost_pusd", "durations", "prompt", "requests", "seconds", "ttft_seconds", "ttfts")

    def __init__(self) -> None:
        self.requests = self.prompt = self.completion = self.cost_pusd = 0
        self.seconds = self.ttft_seconds = 0.0
        self.durations = [0] * (len(DURATION_BUCKETS_S) + 1)
        self.ttfts = [0] * (len(TTFT_BUCKETS_S) + 1)


class Meter:
    """Turns records into Prometheus figures. One per process; never awaits, never raises."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._counts: dict[tuple[str, str | None, str, int, str], _Counts] = {}
        self._attempts: dict[tuple[str, str, str], int] = {}
        self._running: dict[str, int] = {}
        self._ended: list[UsageRecord] = []  # not counted yet
        self._probed: set[tuple[str, str]] = set()

    def begin(self, model: str) -> None:
        """A request is admitted."""
        self._running[model] = self._running.get(model, 0) + 1

    def record(self, record: UsageRecord) -> None:
        """An admitted request has ended; the record does not change any more."""
        self._running[record.model] -= 1
        self._ended.append(record)
        if len(self._ended) >= _BATCH_RECORDS:
            self._count_ended()

    def _count_ended(self) -> None:
        """Many at once: one after another, each between the other work of its request, took twice as long."""
        for record in self._ended:
            self._count(record)
        self._ended.clear()

    def _count(self, record: UsageRecord) -> None:
        r = record
        key = (r.model, r.backend, r.operation, r.status, r.ending)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = _Counts()
        counts.requests += 1
        counts.prompt += r.prompt_tokens
        counts.completion += r.completion_tokens
        counts.cost_pusd += r.cost_pusd
        seconds = r.duration_ms / 1000
        counts.seconds += seconds
        counts.durations[bisect_left(DURATION_BUCKETS_S, seconds)] += 1
        if r.ttft_ms is not None:
            seconds = r.ttft_ms / 1000
            counts.ttft_seconds += seconds
            counts.ttfts[bisect_left(TTFT_BUCKETS_S, seconds)] += 1

    def attempt(self, model: str, backend: str, outcome: str) -> None:
        """One attempt ended. `outcome`: ok, or one fixed word."""
        key = (model, backend, outcome)
        self._attempts[key] = self._attempts.get(key, 0) + 1

    def retry(self, model: str) -> None:
        """A request goes on to another target, or to another model, after a failed attempt."""
        self.metrics.retries.labels(model).inc()

    def retry_denied(self, model: str) -> None:
        """It would have, but the route's retry budget is spent."""
        self.metrics.retries_denied.labels(model).inc()

    def health(self, model: str, backend: str, state: str, alive: bool | None) -> None:
        """What is known of a target at this moment. `alive`: of its probe; None: there is none, or nothing is known. Once a second."""
        self.metrics.backend_state.labels(model, backend).set(_STATES[state])
        if alive is None and (model, backend) not in self._probed:
            return
        self._probed.add((model, backend))
        self.metrics.backend_probe_up.labels(model, backend).set(math.nan if alive is None else alive)

    def forget_targets(self) -> None:
        """A new table: what was said of the targets of the old one goes, for those that remain are told again."""
        for gauge in (self.metrics.backend_ready, self.metrics.backend_state, self.metrics.backend_probe_up):
            gauge.clear()
        self._probed.clear()

    def refusal(self, operation: str, code: str) -> None:
        """A request was refused before admission."""
        self.metrics.refusals.labels(operation, code).inc()

    def limit_refusal(self, kind: str) -> None:
        """It was refused by a limit."""
        self.metrics.limited.labels(kind).inc()

    def shadow(
        self, model: str, backend: str, outcome: str, seconds: float, original_s: float, tokens: int | None, original_tokens: int
    ) -> None:
        """A copy of a request has ended. Times and tokens are summed over the same pairs, so that their quotients compare."""
        metrics = self.metrics
        metrics.shadow_requests.labels(model, backend, outcome).inc()
        if outcome == "ok":
            metrics.shadow_seconds.labels(model, backend, "shadow").inc(seconds)
            metrics.shadow_seconds.labels(model, backend, "original").inc(original_s)
            if tokens is not None:
                metrics.shadow_tokens.labels(model, backend, "shadow").inc(tokens)
                metrics.shadow_tokens.labels(model, backend, "original").inc(original_tokens)

    def shadow_skipped(self, model: str, backend: str) -> None:
        """A copy was not sent: too many run."""
        self.metrics.shadow_requests.labels(model, backend, "skipped").inc()

    def running(self) -> int:
        """Admitted requests that have not ended."""
        return sum(self._running.values())

    def flush(self) -> None:
        """Hand over what was counted."""
        self._count_ended()
        metrics = self.metrics
        for model, running in self._running.items():
            metrics.in_flight.labels(model).set(running)
        for (model, backend, outcome), attempts in self._attempts.items():
            metrics.attempts.labels(model, backend, outcome).inc(attempts)
        self._attempts.clear()
        counted, self._counts = self._counts, {}
        for (model, target, operation, status, ending), counts in counted.items():
            metrics.requests.labels(model, target or "none", operation, f"{status // 100}xx", ending).inc(counts.requests)
            metrics.tokens.labels(model, "prompt").inc(counts.prompt)
            metrics.tokens.labels(model, "completion").inc(counts.completion)
            metrics.cost.labels(model).inc(counts.cost_pusd / 1e12)
            _add(metrics.duration.labels(model, operation), counts.durations, counts.seconds)
            if any(counts.ttfts):
                _add(metrics.ttft.labels(model), counts.ttfts, counts.ttft_seconds)


def _add(histogram: Histogram, buckets: list[int], total: float) -> None:
    """Many observations at once. `buckets`: observations per bucket, +Inf last. prometheus_client has `observe` only, one at a time."""
    child: Any = histogram
    for value, count in zip(child._buckets, buckets, strict=True):
        if count:
            value.inc(count)
    child._sum.inc(total)
