"""The seam of metering: what is counted of requests. `gateway.metering.meter.Meter` says what each call means."""

from __future__ import annotations

from typing import Protocol

from gateway.metering.names import Metrics
from gateway.metering.record import UsageRecord


class Metering(Protocol):
    """Never awaits, never raises."""

    metrics: Metrics

    def begin(self, model: str) -> None: ...

    def record(self, record: UsageRecord) -> None: ...

    def attempt(self, model: str, backend: str, outcome: str) -> None: ...

    def retry(self, model: str) -> None: ...

    def retry_denied(self, model: str) -> None: ...

    def refusal(self, operation: str, code: str) -> None: ...

    def limit_refusal(self, kind: str) -> None: ...

    def shadow(
        self, model: str, backend: str, outcome: str, seconds: float, original_s: float, tokens: int | None, original_tokens: int
    ) -> None: ...

    def shadow_skipped(self, model: str, backend: str) -> None: ...

    def health(self, model: str, backend: str, state: str, alive: bool | None) -> None: ...

    def forget_targets(self) -> None: ...

    def running(self) -> int: ...

    def flush(self) -> None: ...


class NullMeter:
    """Counts nothing: for measuring what counting costs, never composed by the server."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def begin(self, model: str) -> None:
        pass

    def record(self, record: UsageRecord) -> None:
        pass

    def attempt(self, model: str, backend: str, outcome: str) -> None:
        pass

    def retry(self, model: str) -> None:
        pass

    def retry_denied(self, model: str) -> None:
        pass

    def refusal(self, operation: str, code: str) -> None:
        pass

    def limit_refusal(self, kind: str) -> None:
        pass

    def shadow(
        self, model: str, backend: str, outcome: str, seconds: float, original_s: float, tokens: int | None, original_tokens: int
    ) -> None:
        pass

    def shadow_skipped(self, model: str, backend: str) -> None:
        pass

    def health(self, model: str, backend: str, state: str, alive: bool | None) -> None:
        pass

    def forget_targets(self) -> None:
        pass

    def running(self) -> int:
        return 0

    def flush(self) -> None:
        pass
