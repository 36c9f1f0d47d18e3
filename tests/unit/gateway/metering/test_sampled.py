"""What is kept of the exposition, and what was added between two readings of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.metering.exposition import parse
from gateway.metering.meter import Meter
from gateway.metering.names import DURATION_BUCKETS_S, Metrics, make_metrics
from gateway.metering.record import UsageRecord
from gateway.metering.sampled import LABELS, LINES, MOST_BUCKETS, SAMPLED, Figures, Series, between, read

REQUESTS: Series = ("gateway_requests_total", ("m", "b", "chat", "2xx"))
COST: Series = ("gateway_cost_usd_total", ("m", "", "", ""))
IN_FLIGHT: Series = ("gateway_requests_in_flight", ("m", "", "", ""))
TIMES: Series = ("gateway_request_duration_seconds", ("m", "", "chat", ""))


def record(**fields: object) -> UsageRecord:
    values: dict[str, object] = {
        "request_id": "req-1", "started_at": 0.0, "operation": "chat", "key_id": "k", "user_id": "u", "model": "m", "revision": 3,
        "backend": "b", "attempts": 1, "status": 200, "ending": "success", "prompt_tokens": 10, "completion_tokens": 5,
        "token_source": "backend", "cost_pusd": 10**12, "duration_ms": 15.0, "ttft_ms": 3.0,
    }  # fmt: skip
    return UsageRecord(**(values | fields))  # type: ignore[arg-type]  # one value for each field, of its type


def exposed(meter: Meter) -> Figures:
    meter.flush()
    return read(parse(generate_latest(meter.metrics.registry).decode(), LINES))


def test_a_reading_of_real_metrics() -> None:
    meter = Meter(make_metrics(CollectorRegistry()))
    for one in (record(), record(ending="client_left", status=499), record(duration_ms=100_000.0, ttft_ms=None), record(status=503)):
        meter.begin(one.model)
        meter.record(one)
    meter.begin("m")
    meter.limit_refusal("rpm")
    meter.limit_refusal("tpm")
    meter.refusal("chat", "limit_reached")
    found = exposed(meter)
    assert found[REQUESTS] == [2]
    assert found["gateway_requests_total", ("m", "b", "chat", "4xx")] == [1]
    assert found["gateway_prompt_tokens_total", ("m", "", "", "")] == [40]
    assert found["gateway_completion_tokens_total", ("m", "", "", "")] == [20]
    assert found[COST] == [pytest.approx(4)]
    assert found[IN_FLIGHT] == [1]
    assert found["gateway_limit_refusals_total", ("", "", "", "")] == [2]
    assert found["gateway_refusals_total", ("", "", "chat", "")] == [1]
    assert found[TIMES] == [4, 0, 3, *[0] * 12, 1]
    assert found["gateway_time_to_first_token_seconds", ("m", "", "", "")][:3] == [3, 0, 3]


def test_every_kept_metric_is_one_of_the_server_with_these_labels() -> None:
    metrics = make_metrics(CollectorRegistry())
    names = {field.name: getattr(metrics, field.name) for field in dataclasses.fields(Metrics) if field.name != "registry"}
    real = {one._name: one for one in names.values()}
    for one in SAMPLED.values():
        metric = real[one.source.removesuffix("_total")]
        assert set(one.labels) | set(one.only) <= set(metric._labelnames), one.name
        assert tuple(label for label in LABELS if label in metric._labelnames) == one.labels, one.name
        if one.bounds:
            assert (*one.bounds, math.inf) == tuple(metric._kwargs["buckets"]) + (
                () if math.inf in metric._kwargs["buckets"] else (math.inf,)
            )
            assert len(one.bounds) + 1 <= MOST_BUCKETS


def test_what_was_added() -> None:
    before = {REQUESTS: [10.0], COST: [0.3], IN_FLIGHT: [5.0], TIMES: [3.0, 1.0, 2.0]}
    now = {REQUESTS: [14.0], COST: [0.1 + 0.2], IN_FLIGHT: [2.0], TIMES: [5.0, 1.0, 4.0]}
    assert between(before, now) == ({REQUESTS: [4.0], COST: [pytest.approx(0, abs=1e-12)], IN_FLIGHT: [2.0], TIMES: [2.0, 0.0, 2.0]}, False)
    assert between(now, now) == ({IN_FLIGHT: [2.0]}, False)


def test_a_sum_of_fractions_that_differs_in_its_last_digit_is_no_new_beginning() -> None:
    before: Figures = {REQUESTS: [10.0], COST: [0.1 + 0.2]}
    assert before[COST][0] > 0.3
    assert between(before, {REQUESTS: [11.0], COST: [0.3]}) == ({REQUESTS: [1.0]}, False)


@pytest.mark.parametrize("now", [{REQUESTS: [3.0]}, {REQUESTS: [3.0], COST: [9.0]}, {COST: [9.0]}])
def test_a_server_that_began_anew_has_no_negative_rates(now: Figures) -> None:
    assert between({REQUESTS: [10.0], COST: [0.5]}, now) == (now, True)


def test_gauges_may_fall_and_vanish() -> None:
    assert between({IN_FLIGHT: [5.0], REQUESTS: [1.0]}, {IN_FLIGHT: [1.0], REQUESTS: [1.0]}) == ({IN_FLIGHT: [1.0]}, False)
    assert between({IN_FLIGHT: [5.0], REQUESTS: [1.0]}, {REQUESTS: [1.0]}) == ({}, False)


def test_buckets_that_are_not_ours_and_what_is_no_number_are_left_out() -> None:
    labels = {"model": "m", "operation": "chat"}
    lines = [
        ("gateway_request_duration_seconds_bucket", labels | {"le": le}, value)
        for le, value in (("0.01", 1.0), ("0.015", 2.0), ("+Inf", 3.0))
    ]
    found = read([*lines, ("gateway_requests_in_flight", {"model": "m"}, math.nan)])
    assert set(found) == {TIMES}
    assert found[TIMES][0] == 3
    assert len(found[TIMES]) == 2 + len(DURATION_BUCKETS_S)
