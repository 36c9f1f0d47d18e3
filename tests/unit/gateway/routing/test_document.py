"""What a document may say, what it may not, and its one normal form."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.routing.document import canonical, secret_names, take_secrets
from gateway.routing.faults import DocumentInvalid
from gateway.routing.reading import parse_document


def document_with(backend: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    return {"models": [{"id": "chat", "backends": [backend or {"type": "echo"}], **model}]}


def custom(**fields: Any) -> dict[str, Any]:
    return {"type": "custom", "base_url": "http://10.0.0.5:8000/v1", **fields}


def faults_of(data: object, **options: Any) -> dict[str, str]:
    with pytest.raises(DocumentInvalid) as caught:
        parse_document(data, **options)
    return {fault.place: fault.message for fault in caught.value.faults}


def test_spelling_order_and_quoting_do_not_change_the_content() -> None:
    camel = document_with(
        custom(apiKey="k", baseURL="http://10.0.0.5:8000/v1/", base_url=None) | {"weight": "3"},
        maxOutputTokens="7", prices={"input": "0.150", "output": 2}, timeouts={"firstByteS": 30},
        limits={"rpm": "5", "budget": "020.500/month", "tokenBudget": 1000},
    )  # fmt: skip
    del camel["models"][0]["backends"][0]["base_url"]
    snake = document_with(
        {"weight": 3, "api_key": "k", "type": "custom", "base_url": "HTTP://10.0.0.5:8000/v1"},
        timeouts={"first_byte_s": 30.0}, prices={"output": "2.0", "input": ".15"}, max_output_tokens=7, policy="weighted",
        limits={"token_budget": "1000", "budget": " 20.5/month", "rpm": 5},
    )  # fmt: skip
    assert canonical(parse_document(camel)) == canonical(parse_document(snake))


def test_the_normal_form_reads_back_as_itself() -> None:
    document = parse_document(document_with(custom(api_key={"secret": "s"}), prices={"input": "0", "output": "1"}, name="N"))
    assert parse_document(document.as_dict()) == document


@pytest.mark.parametrize(
    ("backend", "model", "place", "says"),
    [
        ({"type": "echo", "weight": -1}, {}, "models[0].backends[0].weight", "0 or more"),
        ({"type": "echo", "weight": 1.5}, {}, "models[0].backends[0].weight", "whole number"),
        ({"type": "echo", "weight": True}, {}, "models[0].backends[0].weight", "whole number"),
        ({"type": "echo", "wieght": 1}, {}, "models[0].backends[0].wieght", 'did you mean "weight"'),
        ({"type": "echoo"}, {}, "models[0].backends[0].type", 'did you mean "echo"'),
        ({"weight": 1}, {}, "models[0].backends[0].type", "missing"),
        ({"type": "custom"}, {}, "models[0].backends[0].base_url", "missing"),
        (custom(apiKey="k", authorization="Bearer k"), {}, "models[0].backends[0].authorization", "only one"),
        (custom(api_key=""), {}, "models[0].backends[0].api_key", "empty"),
        (custom(api_key="a\r\nx: y"), {}, "models[0].backends[0].api_key", "header cannot carry"),
        (custom(api_key=5), {}, "models[0].backends[0].api_key", "must be text"),
        (custom(api_key={"secret": "x", "secrets": "x"}), {}, "models[0].backends[0].api_key.secrets", 'did you mean "secret"'),
        (custom(id="a/b"), {}, "models[0].backends[0].id", "letters"),
        ({"type": "local", "path": "a/../../b"}, {}, "models[0].backends[0].path", '".."'),
        ({"type": "local", "path": "p", "port": 70000}, {}, "models[0].backends[0].port", "at most 65535"),
        ({"type": "local"}, {}, "models[0].backends[0].path", "missing"),
        ({"type": "echo", "delay_ms": -1}, {}, "models[0].backends[0].delay_ms", "0 or more"),
        (None, {"policy": "least-inflight"}, "models[0].policy", 'did you mean "least-in-flight"'),
        (None, {"prices": {"input": "1e999999", "output": "1"}}, "models[0].prices.input", "at most"),
        (None, {"prices": {"input": "abc", "output": "1"}}, "models[0].prices.input", "decimal string"),
        (None, {"prices": {"input": "NaN", "output": "1"}}, "models[0].prices.input", "decimal string"),
        (None, {"prices": {"input": "-0.1", "output": "1"}}, "models[0].prices.input", "0 or more"),
        (None, {"prices": {"input": "0.1234567", "output": "1"}}, "models[0].prices.input", "6 decimals"),
        (None, {"prices": {"input": "1"}}, "models[0].prices.output", "missing"),
        (None, {"limits": {"rpm": 0}}, "models[0].limits.rpm", "1 or more"),
        (None, {"limits": {"rph": 5}}, "models[0].limits.rph", 'did you mean "rp'),
        (None, {"limits": {"budget": "5/year"}}, "models[0].limits.budget", '"year" is not a window; there are: day, week, month'),
        (None, {"limits": {"budget": "-5"}}, "models[0].limits.budget", "USD"),
        (None, {"limits": {"budget": "0.0000000000001"}}, "models[0].limits.budget", "12 decimals"),
        (None, {"limits": {"budget": "9999999"}}, "models[0].limits.budget", "USD"),
        (None, {"limits": {"budget": True}}, "models[0].limits.budget", "USD"),
        (None, {"limits": {"tokenBudget": "1.5/day"}}, "models[0].limits.token_budget", "TOKENS"),
        (None, {"limits": {"tokenBudget": []}}, "models[0].limits.token_budget", "TOKENS"),
        (None, {"limits": {"soft": 101}}, "models[0].limits.soft", "at most 100"),
        (None, {"timeouts": {"idle_s": -1}}, "models[0].timeouts.idle_s", "0 or more"),
        (None, {"timeouts": {"idle_s": float("inf")}}, "models[0].timeouts.idle_s", "at most"),
        (None, {"timeouts": {"idle_s": float("nan")}}, "models[0].timeouts.idle_s", "number of seconds"),
        (None, {"timeouts": 5}, "models[0].timeouts", "mapping"),
        (None, {"maxOutputTokens": 0}, "models[0].max_output_tokens", "1 or more"),
        (None, {"parameters": {"model": "x"}}, "models[0].parameters", '"model"'),
        (None, {"parameters": {"temperature": float("nan")}}, "models[0].parameters", "JSON"),
        (None, {"parameters": [1]}, "models[0].parameters", "mapping"),
        (None, {"id": "a b"}, "models[0].id", "letters"),
        (None, {"id": "a/../b"}, "models[0].id", "letters"),
        (None, {"id": "gpt-*"}, "models[0].id", "letters"),
        (None, {"id": 5}, "models[0].id", "must be text"),
        (None, {"backends": []}, "models[0].backends", "at least one"),
        (None, {"backends": "x"}, "models[0].backends", "must be a list"),
        (None, {"max_output_tokens": 1, "maxOutputTokens": 1}, "models[0].maxOutputTokens", "second time"),
    ],
)
def test_one_fault(backend: dict[str, Any] | None, model: dict[str, Any], place: str, says: str) -> None:
    faults = faults_of(document_with(backend, **model))
    assert list(faults) == [place]
    assert says in faults[place]


def test_all_faults_come_at_once() -> None:
    data = document_with({"type": "echo", "weight": -1}, policy="nothing")
    data["models"].append(data["models"][0])
    data["modles"] = 1
    assert set(faults_of(data)) == {
        "modles", "models[0].backends[0].weight", "models[0].policy", "models[1].id", "models[1].backends[0].weight", "models[1].policy",
    }  # fmt: skip


@pytest.mark.parametrize("data", [None, [], "x", 5])
def test_no_mapping_is_no_document(data: object) -> None:
    assert faults_of(data) == {"": 'must be a mapping that begins with "models:"'}


def test_no_models_at_all_is_legal_and_no_key_is_not() -> None:
    assert parse_document({"models": []}).models == []
    assert list(faults_of({})) == ["models"]


def test_duplicate_backend_ids_are_faults_and_derived_ids_step_aside() -> None:
    echo = {"type": "echo"}
    data = document_with(backends=[{**echo, "id": "a"}, {**echo, "id": "a"}])
    assert list(faults_of(data)) == ["models[0].backends[1].id"]
    document = parse_document(document_with(backends=[echo, {**echo, "id": "echo-1"}, custom(), echo]))
    assert document.models[0].backend_ids() == ("echo-2", "echo-1", "custom-1", "echo-3")


def test_a_new_key_never_takes_the_name_of_one_that_is_referred_to() -> None:
    """An exported file with a backend put in before the others: its key must not replace the one that moved down."""
    backends = [custom(api_key="new"), custom(api_key={"secret": "chat/custom-1"}), custom(id="c", api_key={"secret": "chat/custom-1~2"})]
    document, taken = take_secrets(parse_document(document_with(backends=backends)))
    assert taken == {"chat/custom-1~3": "new"}
    assert secret_names(document) == {"chat/custom-1", "chat/custom-1~2", "chat/custom-1~3"}


def test_keys_given_as_text_move_to_secrets_under_stable_names() -> None:
    backends = [custom(api_key="k1"), custom(id="b", authorization="Basic k2"), custom(id="c", api_key={"secret": "mine"})]
    document, taken = take_secrets(parse_document(document_with(backends=backends)))
    assert taken == {"chat/custom-1": "k1", "chat/b": "Basic k2"}
    assert secret_names(document) == {"chat/custom-1", "chat/b", "mine"}
    assert not any(text in canonical(document) for text in ("k1", "k2"))
    assert take_secrets(document) == (document, {})
    assert parse_document(document.as_dict()) == document


def test_neither_faults_nor_repr_show_a_key() -> None:
    document = parse_document(document_with(custom(api_key="sk-very-secret")))
    assert "sk-very-secret" not in repr(document)
    with pytest.raises(DocumentInvalid) as caught:
        parse_document(document_with(custom(api_key="sk-very-secret\n", authorization="sk-very-secret")))
    assert "sk-very-secret" not in str(caught.value)


def test_over_http_a_path_is_never_absolute() -> None:
    local = {"type": "local", "path": "/srv/models/x"}
    assert parse_document(document_with(local))
    assert list(faults_of(document_with(local), absolute_paths=False)) == ["models[0].backends[0].path"]
    assert parse_document(document_with({"type": "local", "path": "org/x"}), absolute_paths=False)


@pytest.mark.parametrize("model_id", ["chat", "meta-llama/Llama-3.1-8B", "a:b@c", "한국어-모델"])
def test_ids_that_people_use(model_id: str) -> None:
    assert parse_document(document_with(id=model_id)).models[0].id == model_id
