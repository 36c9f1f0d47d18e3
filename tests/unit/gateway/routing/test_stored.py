"""What an older version accepted serves on without what is refused today, and every such thing is said."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import pytest

from gateway.routing.reading import parse_document
from gateway.routing.stored import Stored, read_stored

GOOD = {"type": "custom", "base_url": "http://10.0.0.5:8000/v1"}
UNFIT = {"type": "custom", "base_url": "http://0.0.0.0:8000/v1"}
FIT: dict[str, Any] = {"id": "other", "backends": [{"type": "echo"}]}


def stored(**model: Any) -> Stored:
    return read_stored({"models": [{"id": "chat", "backends": [GOOD], **model}, FIT]})


def names(found: Stored) -> dict[str, tuple[str, ...]]:
    return {model.id: model.backend_ids() for model in found.document.models}


def test_a_fit_document_is_read_as_ever() -> None:
    data = {"models": [{"id": "chat", "backends": [GOOD, GOOD]}, FIT]}
    assert read_stored(data) == Stored(parse_document(data))


def test_an_unfit_backend_is_left_out_and_the_others_keep_their_names() -> None:
    given = {"models": [{"id": "chat", "backends": [UNFIT, GOOD, {**GOOD, "id": "own"}]}, FIT]}
    before = deepcopy(given)
    found = read_stored(given)
    assert names(found) == {"chat": ("custom-2", "own"), "other": ("echo-1",)}
    (problem,) = found.problems
    assert problem.startswith("backend custom-1 of model chat is left out: models[0].backends[0].base_url: has an address that")
    assert given == before


def test_a_model_may_be_left_without_backends() -> None:
    found = stored(backends=[UNFIT, UNFIT])
    assert names(found) == {"chat": (), "other": ("echo-1",)}
    assert len(found.problems) == 2


@pytest.mark.parametrize(
    "spread",
    [
        {"policy": "canary", "canary": {"backends": ["custom-1"], "percent": 5}},
        {"policy": "experiment", "experiment": {"name": "x", "arms": {"a": {"backends": ["custom-1"]}, "b": {"backends": ["custom-2"]}}}},
        {"shadow": {"backend": "custom-1", "sample": 0.5}},
    ],
    ids=["canary", "experiment", "shadow"],
)
def test_what_names_a_backend_that_is_left_out_stays(spread: dict[str, Any]) -> None:
    """As where its secret is missing: who has which side does not change because one backend is away."""
    found = stored(backends=[UNFIT, GOOD], **spread)
    assert len(found.problems) == 1
    model = found.document.models[0]
    assert model.backend_ids() == ("custom-2",)
    assert model.policy == spread.get("policy", "weighted")
    assert (model.canary, model.experiment, model.shadow) != (None, None, None)


@pytest.mark.parametrize(
    "part",
    [
        {"fallback": "nowhere"},
        {"tokenizer": "../x"},
        {"policy": "no-such", "sticky": {"by": "user"}},
        {"policy": "canary", "canary": {"backends": ["gone"], "percent": 5}},
        {"timeouts": {"connect_s": -1}},
        {"shadow": {"backend": "gone", "sample": 1}},
    ],
    ids=lambda part: next(iter(part)),
)
def test_a_model_does_without_a_part_that_it_can_do_without(part: dict[str, Any]) -> None:
    found = stored(**part)
    assert names(found) == {"chat": ("custom-1",), "other": ("echo-1",)}
    assert found.problems
    assert all("of model chat is left out: models[0]" in problem for problem in found.problems)


@pytest.mark.parametrize("part", [{"prices": {"input": "-1", "output": "1"}}, {"parameters": {"stream": True}}, {"colour": "red"}])
def test_a_model_whose_price_or_parameters_are_unfit_does_not_serve(part: dict[str, Any]) -> None:
    """Without them it would cost nothing, or be asked for something else than its author wrote."""
    found = stored(**part)
    assert names(found) == {"chat": (), "other": ("echo-1",)}
    assert "backend custom-1 of model chat is left out" in " ".join(found.problems)


def test_a_model_without_a_usable_name_goes_and_so_does_what_leads_to_it() -> None:
    found = read_stored({"models": [{"id": "a*b", "backends": [GOOD]}, {**FIT, "fallback": "a*b"}]})
    assert names(found) == {"other": ("echo-1",)}
    assert found.document.models[0].fallback is None
    assert "model a*b is left out" in found.problems[0]


@pytest.mark.parametrize(
    "data", [None, [], "text", {}, {"models": 3}, {"models": [3, None]}, {"models": [{}], "x": 1}, {"models": [{"id": "m"}]}]
)
def test_whatever_is_in_it_something_comes_back(data: Any) -> None:
    found = read_stored(data)
    assert found.problems
    assert all(not model.backends for model in found.document.models)


def test_no_document_is_so_broken_that_reading_it_fails() -> None:
    rng = random.Random(7)
    junk: list[Any] = [None, 3, "", "x y", [], {}, -1, True, {"secret": 3}, [UNFIT], "0.0.0.0"]
    whole = {
        "models": [
            {"id": "chat", "policy": "canary", "canary": {"backends": ["a"], "percent": 5}, "backends": [{**GOOD, "id": "a"}, GOOD, UNFIT],
             "prices": {"input": "1", "output": "2"}, "fallback": "other", "retries": {"ratio": 0.1}},
            FIT,
        ]
    }  # fmt: skip

    def break_somewhere(value: Any) -> Any:
        if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
            return deepcopy(rng.choice(junk))
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value[key] = break_somewhere(value[key])
        return value

    for _ in range(400):
        broken = deepcopy(whole)
        for _ in range(rng.randint(1, 4)):
            broken = break_somewhere(broken)
            if not isinstance(broken, dict):
                break
        found = read_stored(broken)
        parse_document({"models": [{"id": m.id, "backends": b} for m in found.document.models if (b := m.model_dump()["backends"])]})
