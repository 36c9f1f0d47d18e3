"""Every metric of the serving process: name, help, labels, buckets.

Labels are bounded: route ids, target names, operations, status classes. A model that is not in the route table never becomes a label.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# OpenTelemetry's GenAI buckets: durations 0.01 * 2^n; time to first token from 1 ms, extended as vLLM extends it.
DURATION_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)


@dataclass(frozen=True)
class Metrics:
    """The metric objects of one process, in one registry."""

    registry: CollectorRegistry
    requests: Counter
    refusals: Counter
    duration: Histogram
    ttft: Histogram
    tokens: Counter
    cost: Counter
    attempts: Counter
    in_flight: Gauge
    limited: Counter
    retries: Counter
    retries_denied: Counter
    shadow_requests: Counter
    shadow_seconds: Counter
    shadow_tokens: Counter
    backend_ready: Gauge
    backend_state: Gauge
    backend_probe_up: Gauge
    build: Gauge
    revision: Gauge
    log_lines_lost: Counter
    redis_up: Gauge
    content_dropped: Counter
    ledger_waiting: Gauge
    ledger_disk: Gauge
    ledger_segments: Gauge
    ledger_age: Gauge


def make_metrics(registry: CollectorRegistry) -> Metrics:
    """Register everything once."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # _created doubles the series and says nothing here
    return Metrics(
        registry=registry,
        requests=Counter(
            "gateway_requests",
            "Admitted requests that have ended.",
            ("model", "backend", "operation", "status", "ending"),
            registry=registry,
        ),
        refusals=Counter("gateway_refusals", "Requests refused before admission.", ("operation", "code"), registry=registry),
        duration=Histogram(
            "gateway_request_duration_seconds",
            "Time from the request's head to the last byte handed to the client.",
            ("model", "operation"),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        ),
        ttft=Histogram(
            "gateway_time_to_first_token_seconds",
            "Time from the request's head to the first event of a stream.",
            ("model",),
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        ),
        tokens=Counter("gateway_tokens", "Tokens of ended requests.", ("model", "type"), registry=registry),
        cost=Counter("gateway_cost_usd", "Cost of ended requests in USD, by the route's prices.", ("model",), registry=registry),
        attempts=Counter(
            "gateway_backend_attempts", "Attempts at backends by outcome.", ("model", "backend", "outcome"), registry=registry
        ),
        in_flight=Gauge(
            "gateway_requests_in_flight",
            "Requests admitted and not ended.",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        ),
        retries=Counter("gateway_retries", "Attempts beyond the first of a request.", ("model",), registry=registry),
        retries_denied=Counter(
            "gateway_retries_denied", "Retries that the route's retry budget did not allow.", ("model",), registry=registry
        ),
        shadow_requests=Counter(
            "gateway_shadow_requests",
            "Copies of requests sent to a shadow backend, by how they ended.",
            ("model", "backend", "outcome"),
            registry=registry,
        ),
        shadow_seconds=Counter(
            "gateway_shadow_duration_seconds",
            "Summed durations of copies that ended well (side=shadow) and of their originals (side=original).",
            ("model", "backend", "side"),
            registry=registry,
        ),
        shadow_tokens=Counter(
            "gateway_shadow_completion_tokens",
            "Summed completion tokens of the same pairs, where both sides said.",
            ("model", "backend", "side"),
            registry=registry,
        ),
        limited=Counter("gateway_limit_refusals", "Requests refused by a limit.", ("kind",), registry=registry),
        backend_ready=Gauge(
            "gateway_backend_ready", "1 while the backend can serve.", ("model", "backend"), registry=registry, multiprocess_mode="livemax"
        ),
        backend_state=Gauge(
            "gateway_backend_state",
            "0 closed (well), 1 half-open (on trial), 2 open (left out), 3 resting (it asked for a pause).",
            ("model", "backend"),
            registry=registry,
            multiprocess_mode="livemax",
        ),
        backend_probe_up=Gauge(
            "gateway_backend_probe_up",
            "1 while the backend's probe succeeds, 0 while it fails, NaN while nothing is known of it.",
            ("model", "backend"),
            registry=registry,
            multiprocess_mode="livemin",
        ),
        build=Gauge(
            "gateway_build_info", "Constant 1; the version is the label.", ("version",), registry=registry, multiprocess_mode="livemax"
        ),
        revision=Gauge("gateway_revision", "Id of the revision in force.", registry=registry, multiprocess_mode="livemin"),
        log_lines_lost=Counter("gateway_log_lines_lost", "Log lines that could not be written.", registry=registry),
        redis_up=Gauge(
            "gateway_limits_redis_up",
            "1 while Redis decides on limits over hosts, 0 while it is away; away: what happens then (GATEWAY_REDIS_AWAY). Absent without.",
            ("away",),
            registry=registry,
            multiprocess_mode="livemin",
        ),
        content_dropped=Counter(
            "gateway_content_log_dropped",
            "Requests whose content was to be logged and is not kept: no room, or no disk.",
            registry=registry,
        ),
        ledger_waiting=Gauge(
            "gateway_ledger_waiting_bytes",
            "Bytes of the host's ledger that are not in the database yet.",
            registry=registry,
            multiprocess_mode="livemax",
        ),
        ledger_disk=Gauge(
            "gateway_ledger_disk_bytes",
            "What the host's ledger takes of the disk; GATEWAY_LEDGER_MAX_MB bounds it.",
            registry=registry,
            multiprocess_mode="livemax",
        ),
        ledger_segments=Gauge("gateway_ledger_segments", "Segments of the host's ledger.", registry=registry, multiprocess_mode="livemax"),
        ledger_age=Gauge(
            "gateway_ledger_oldest_seconds",
            "Age of the oldest request in the host's ledger that is not in the database yet.",
            registry=registry,
            multiprocess_mode="livemax",
        ),
    )
