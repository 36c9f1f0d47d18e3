from __future__ import annotations

import math
import os

import orjson
from prometheus_client import CollectorRegistry

from gateway.metering.log import RequestLog
from gateway.metering.meter import Meter
from gateway.metering.names import make_metrics
from gateway.metering.record import UsageRecord


def record(number: int, **more: object) -> UsageRecord:
    fields: dict[str, object] = {"status": 200, "ending": "success", "backend": "b1", "attempts": 1} | more
    return UsageRecord(f"req-{number}", 1.0, "chat", "k", "u", "m", 1, **fields)  # type: ignore[arg-type]


def test_counts_are_handed_over_once() -> None:
    registry = CollectorRegistry()
    meter = Meter(make_metrics(registry))
    for _ in range(3):
        meter.begin("m")
        meter.attempt("m", "b1", "ok")
    for number in range(2):
        meter.record(record(number, prompt_tokens=5, completion_tokens=7, cost_pusd=10**12, duration_ms=15.0, ttft_ms=3.0))
    assert meter.running() == 1
    for _ in range(2):
        meter.flush()
        labels = {"model": "m", "backend": "b1", "operation": "chat", "status": "2xx", "ending": "success"}
        assert registry.get_sample_value("gateway_requests_total", labels) == 2
        assert registry.get_sample_value("gateway_tokens_total", {"model": "m", "type": "completion"}) == 14
        assert registry.get_sample_value("gateway_cost_usd_total", {"model": "m"}) == 2
        assert registry.get_sample_value("gateway_requests_in_flight", {"model": "m"}) == 1
        assert registry.get_sample_value("gateway_backend_attempts_total", {"model": "m", "backend": "b1", "outcome": "ok"}) == 3
        of_model = {"model": "m", "operation": "chat"}
        assert registry.get_sample_value("gateway_request_duration_seconds_count", of_model) == 2
        assert registry.get_sample_value("gateway_request_duration_seconds_sum", of_model) == 0.03
        assert registry.get_sample_value("gateway_request_duration_seconds_bucket", of_model | {"le": "0.01"}) == 0
        assert registry.get_sample_value("gateway_request_duration_seconds_bucket", of_model | {"le": "0.02"}) == 2
        assert registry.get_sample_value("gateway_time_to_first_token_seconds_count", {"model": "m"}) == 2


def test_the_health_of_targets() -> None:
    registry = CollectorRegistry()
    meter = Meter(make_metrics(registry))
    state, up, of = "gateway_backend_state", "gateway_backend_probe_up", {"model": "m", "backend": "b"}
    for name, value in (("closed", 0), ("half_open", 1), ("open", 2), ("resting", 3)):
        meter.health("m", "b", name, None)
        assert registry.get_sample_value(state, of) == value
    assert registry.get_sample_value(up, of) is None  # nothing probes it: no series
    for alive, shown in ((False, 0), (True, 1)):
        meter.health("m", "b", "closed", alive)
        assert registry.get_sample_value(up, of) == shown
    meter.health("m", "b", "closed", None)  # the keeper is dead
    value = registry.get_sample_value(up, of)
    assert value is not None
    assert math.isnan(value)
    meter.forget_targets()
    meter.health("m", "c", "closed", None)
    assert registry.get_sample_value(state, of) is None
    assert registry.get_sample_value(up, of) is None
    assert registry.get_sample_value(state, {"model": "m", "backend": "c"}) == 0


def test_one_line_per_request_and_none_with_a_key_or_prompt() -> None:
    read, write = os.pipe()
    log = RequestLog(write)
    log.ended(record(1, client_request_id="sk-gw-secret"))
    log.refused(2.0, "req-2", "chat", 401, "invalid_api_key", "expired", None)
    log.flush()
    log.flush()
    os.close(write)
    data = os.read(read, 100_000)
    os.close(read)
    assert b"secret" not in data
    lines = [orjson.loads(line) for line in data.splitlines()]
    assert {(line["event"], line["request_id"], line["status"]) for line in lines} == {("request", "req-1", 200), ("refused", "req-2", 401)}
    assert [line["reason"] for line in lines if line["event"] == "refused"] == ["expired"]


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    log = RequestLog(fd=-1)
    for number in range(600):
        log.ended(record(number))
    log.flush()
    assert (log.take_lost(), log.take_lost()) == (600, 0)
