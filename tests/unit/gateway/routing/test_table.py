"""The table is what the document says, and equal backends are one backend."""

from __future__ import annotations

import random
from typing import Any

from auth.principal import Budget, Limits, TokenBudget
from backends.base import Backend, Exchange
from gateway.routing.default import default_document
from gateway.routing.document import RevisionDocument
from gateway.routing.health import Health
from gateway.routing.policies import Canary, Shadow, Weighted
from gateway.routing.reading import parse_document
from gateway.routing.retries import RetryBudget
from gateway.routing.table import BackendSpec, RouteTable, Timeouts, build_table, local_specs, model_limits

from .conftest import assert_within_three_sigma, targets, user

DEFAULTS = Timeouts(5, 300, 120, 3600)


class Opened:
    ready = True
    asks_usage = True

    def __init__(self, spec: BackendSpec) -> None:
        self.spec = spec

    def open(self) -> Exchange:
        raise AssertionError("the table opens no exchange")

    async def close(self) -> None:
        return


def table_of(document: RevisionDocument, secrets: dict[str, str] | None = None) -> tuple[RouteTable, dict[BackendSpec, Opened]]:
    opened: dict[BackendSpec, Opened] = {}

    def open_backend(spec: BackendSpec) -> Backend:
        return opened.setdefault(spec, Opened(spec))

    return build_table(document, 12, 1_700_000_000, open_backend, DEFAULTS, secrets or {}), opened


def model(**fields: Any) -> dict[str, Any]:
    return {"id": "chat", "backends": [{"type": "echo"}], **fields}


def custom(**fields: Any) -> dict[str, Any]:
    return {"type": "custom", "base_url": "http://10.0.0.5:8000/v1", **fields}


def test_a_route_carries_every_field() -> None:
    document = parse_document({
        "models": [
            model(
                name="Chat One",
                parameters={"temperature": 0.7},
                timeouts={"firstByteS": 30, "total_s": 0},
                prices={"input": "0.15", "output": "0.60", "cached": "0.000001"},
                maxOutputTokens=4096,
                tokenizer="tok",
                backends=[custom(model="llama", weight=3), {"type": "local", "path": "p"}, {"type": "echo", "delay_ms": 5, "weight": 0}],
            )
        ]
    })  # fmt: skip
    table, _ = table_of(document)
    route = table.routes["chat"]
    assert (table.revision, route.revision, route.created, route.name) == (12, 12, 1_700_000_000, "Chat One")
    assert route.parameters == {"temperature": 0.7}
    assert route.timeouts == Timeouts(5, 30, 120, 0)
    assert route.prices is not None
    assert (route.prices.input_pusd, route.prices.output_pusd, route.prices.cached_pusd) == (150_000, 600_000, 1)
    assert (route.max_output_tokens, route.tokenizer, route.live) == (4096, "tok", True)
    assert [(t.id, t.type, t.upstream_model, t.weight, t.path) for t in route.targets] == [
        ("custom-1", "custom", "llama", 3, None),
        ("local-1", "local", "chat", 1, "p"),
        ("echo-1", "echo", "chat", 0, None),
    ]


def test_limits_of_a_model() -> None:
    limits = {"rpm": 1, "rpd": 2, "tpm": 3, "tpd": 4, "concurrency": 5, "budget": "20.5/month", "tokenBudget": "1000/day", "soft": 80}
    document = parse_document({"models": [model(limits=limits), model(id="free"), model(id="empty", limits={"soft": 5})]})
    routes = table_of(document)[0].routes
    limited = routes["chat"].limited
    assert limited is not None
    wanted = Limits(1, 3, 5, Budget(205 * 10**11, "month"), 2, 4, TokenBudget(1000, "day"), 80)
    assert (limited.limit_id, limited.limits) == ("model:chat", wanted)
    assert (routes["free"].limited, routes["empty"].limited) == (None, None)
    assert model_limits(document)["model:chat"] == wanted
    assert parse_document(document.as_dict()) == document


def test_whether_content_is_logged() -> None:
    document = parse_document({"models": [model(contentLog=True), model(id="other", content_log=False)]})
    table, _ = table_of(document)
    assert (table.routes["chat"].content_log, table.routes["other"].content_log) == (True, False)
    first, second = document.as_dict()["models"]
    assert first["content_log"] is True
    assert "content_log" not in second  # documents from before it keep their fingerprints


def test_defaults_where_the_document_says_nothing() -> None:
    route = table_of(parse_document({"models": [model()]}))[0].routes["chat"]
    assert (route.name, route.timeouts, route.prices, route.max_output_tokens, route.tokenizer) == ("chat", DEFAULTS, None, 1024, None)


def test_a_price_of_one_millionth_of_a_cent_is_exact() -> None:
    prices = {"input": "1000000", "output": "123456.654321"}
    route = table_of(parse_document({"models": [model(prices=prices)]}))[0].routes["chat"]
    assert route.prices is not None
    assert (route.prices.input_pusd, route.prices.output_pusd, route.prices.cached_pusd) == (10**12, 123456654321, None)


def test_a_drained_route_is_legal_and_not_live() -> None:
    route = table_of(parse_document({"models": [model(backends=[{"type": "echo", "weight": 0}])]}))[0].routes["chat"]
    assert not route.live
    assert len(route.targets) == 1


def test_equal_specs_are_one_backend_and_different_keys_are_not() -> None:
    backends = [custom(id="a"), custom(id="b", model="other"), custom(id="c", api_key="k1"), custom(id="d", authorization="Bearer k1")]
    route = table_of(parse_document({"models": [model(backends=backends)]}))[0].routes["chat"]
    a, b, c, d = (t.backend for t in route.targets)
    assert a is b
    assert c is d
    assert a is not c


def test_keys_become_bearer_tokens_and_authorization_is_sent_as_it_is() -> None:
    backends = [custom(id="a", api_key={"secret": "s1"}), custom(id="b", authorization={"secret": "s2"}), custom(id="c")]
    route = table_of(parse_document({"models": [model(backends=backends)]}), {"s1": "key", "s2": "Basic eA=="})[0].routes["chat"]
    headers = [t.backend.spec.authorization for t in route.targets if isinstance(t.backend, Opened)]
    assert headers == ["Bearer key", "Basic eA==", None]


def test_a_target_without_its_secret_is_left_out_and_said() -> None:
    backends = [custom(id="a", api_key={"secret": "gone"}), {"type": "echo", "id": "b"}]
    table, _ = table_of(parse_document({"models": [model(backends=backends)]}))
    assert [t.id for t in table.routes["chat"].targets] == ["b"]
    assert table.problems == ('backend a of model chat is left out: the secret "gone" is not in the store',)


def test_a_spec_never_shows_its_key() -> None:
    assert "sk-1" not in repr(BackendSpec("custom", base_url="http://h", authorization="Bearer sk-1"))


def test_local_specs_are_each_named_once() -> None:
    local = {"type": "local", "path": "p"}
    other = {"type": "local", "path": "q", "port": 99}
    document = parse_document({"models": [model(backends=[local, {**local, "weight": 0}]), model(id="e", backends=[local, other])]})
    assert [(s.path, s.port) for s in local_specs(document)] == [("p", None), ("q", 99)]


def test_the_default_document_names_models_after_themselves() -> None:
    table, _ = table_of(default_document("demo-chat", "demo-embed"))
    assert {r.id: r.targets[0].path for r in table.routes.values()} == {"demo-chat": "demo-chat", "demo-embed": "demo-embed"}
    assert list(table_of(default_document("one", "one"))[0].routes) == ["one"]
    assert list(table_of(default_document("/data/llama", "org/embed"))[0].routes) == ["llama", "org/embed"]


def test_what_traffic_needs_is_on_the_route() -> None:
    backends = [
        {"type": "echo", "id": "a", "priority": 2},
        {"type": "local", "id": "b", "path": "p"},
        {"type": "echo", "id": "c", "weight": 0, "model": "x"},
    ]
    spread = {"policy": "canary", "canary": {"backends": ["b"], "percent": 5}, "shadow": {"backend": "c", "sample": 0.25, "maxInFlight": 3}}
    document = parse_document({
        "models": [
            model(backends=backends, fallback="other", retries={"ratio": 0.5, "maxAttempts": 4}, **spread),
            model(id="other"),
        ]
    })  # fmt: skip
    asked: list[tuple[str, float]] = []
    known: dict[tuple[BackendSpec, str], Health] = {}

    def retries_of(route_id: str, ratio: float) -> RetryBudget:
        asked.append((route_id, ratio))
        return RetryBudget(ratio)

    def health_of(spec: BackendSpec, upstream_model: str) -> Health:
        return known.setdefault((spec, upstream_model), Health())

    table = build_table(document, 1, 1, Opened, DEFAULTS, {}, health_of, retries_of)
    route, other = table.routes["chat"], table.routes["other"]
    assert asked == [("chat", 0.5), ("other", 0.2)]
    assert [(t.priority, t.health) for t in route.targets] == list(zip((2, 0, 0), known.values(), strict=False))
    assert set(known) == table.health_keys
    assert len(known) == 4
    assert (route.max_attempts, route.retries.ratio, route.fallback, route.has_local) == (4, 0.5, "other", True)
    assert isinstance(route.policy, Canary)
    assert route.arms is route.policy
    assert route.shadow == Shadow(route.targets[2], 0.25, 3)
    assert (other.max_attempts, other.retries.ratio, other.fallback, other.arms, other.shadow) == (2, 0.2, None, None, None)
    assert not other.has_local
    assert type(other.policy) is Weighted


def test_a_shadow_whose_backend_is_left_out_is_none_and_a_canary_without_one_has_no_users() -> None:
    backends = [{"type": "echo", "id": "a"}, custom(id="b", api_key={"secret": "gone"})]
    spread = {"policy": "canary", "canary": {"backends": ["b"], "percent": 100}, "shadow": {"backend": "b", "sample": 1}}
    route = table_of(parse_document({"models": [model(backends=backends, **spread)]}))[0].routes["chat"]
    assert route.shadow is None
    assert route.arms is not None
    assert route.arms.arm(user(1)) == "stable"


def test_a_sample_is_that_share_of_the_requests() -> None:
    target, rng = targets(1)[0], random.Random(3)
    assert_within_three_sigma(sum(Shadow(target, 0.05).wants(rng) for _ in range(10_000)), 10_000, 0.05, "sampled")
    assert not any(Shadow(target, 0).wants(rng) for _ in range(100))
    assert all(Shadow(target, 1).wants(rng) for _ in range(100))
