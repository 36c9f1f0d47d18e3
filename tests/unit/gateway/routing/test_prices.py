"""Prices of models and of backends, always or from a time on: as documents say them, and as the table has them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.routing.document import canonical
from gateway.routing.file import export_yaml, read_text
from gateway.routing.prices import normal_moment, seconds_of
from gateway.routing.reading import parse_document
from gateway.routing.stored import read_stored
from gateway.routing.table import Prices

from .test_document import document_with, faults_of
from .test_table import table_of

YEAR_26, YEAR_27 = seconds_of("2026-01-01T00:00:00Z"), seconds_of("2027-01-01T00:00:00Z")
CHEAP = {"input": "1", "output": "2"}
DEAR = {"input": "3", "output": "4", "cached": "0.5"}


def texts(prices: Prices | None, *at_s: float) -> list[str | None]:
    found = [prices.at(moment_s) if prices is not None else None for moment_s in at_s]
    return [one.text if one is not None else None for one in found]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("2027-01-01t09:00:00+09:00", "2027-01-01T00:00:00Z"),
        ("2026-12-31 19:00:00-05:00", "2027-01-01T00:00:00Z"),
        ("2027-01-01T00:00:00.000z", "2027-01-01T00:00:00Z"),
        ("2027-01-01T00:00:00.5Z", "2027-01-01T00:00:00.500Z"),
        ("2027-01-01T00:00:00.000001Z", "2027-01-01T00:00:00.000001Z"),
    ],
)
def test_a_moment_has_one_normal_form(written: str, normal: str) -> None:
    assert normal_moment(written) == normal
    assert normal_moment(normal) == normal


@pytest.mark.parametrize(
    "written",
    ["", "2027-01-01", "2027-01-01T00:00:00", "2027-01-01T00:00Z", "2027-02-30T00:00:00Z", "20270101T000000Z", "2027-01-01T00:00:60Z",
     "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2027-W01-1T00:00:00Z", "٢-01-01T00:00:00Z", "7d"],
)  # fmt: skip
def test_what_is_no_moment(written: str) -> None:
    faults = faults_of(document_with(prices=[{"from": written, **CHEAP}]))
    assert list(faults) == ["models[0].prices[0].from"]


@pytest.mark.parametrize(
    ("prices", "place", "says"),
    [
        ([], "models[0].prices", "at least one"),
        ([CHEAP, {**DEAR}], "models[0].prices", 'two entries without "from"'),
        ([{"from": "2027-01-01T00:00:00Z", **CHEAP}, {"from": "2027-01-01T01:00:00+01:00", **DEAR}], "models[0].prices",
         "two entries from 2027-01-01T00:00:00Z"),
        ([CHEAP, {"from": "2027-01-01T00:00:00Z", "input": "1"}], "models[0].prices[1].output", "missing"),
        ([{**CHEAP, "form": "2027-01-01T00:00:00Z"}], "models[0].prices[0].form", 'did you mean "from"'),
        ([{**CHEAP, "from": 1767225600}], "models[0].prices[0].from", "must be text"),
        ([5], "models[0].prices[0]", "must be a mapping"),
        ("free", "models[0].prices", "must be a mapping"),
        ({**CHEAP, "from": "2027-01-01T00:00:00Z"}, "models[0].prices.from", "unknown key"),
    ],
)  # fmt: skip
def test_one_fault_of_a_model_and_the_same_of_its_backend(prices: Any, place: str, says: str) -> None:
    faults = faults_of(document_with(prices=prices))
    assert list(faults) == [place]
    assert says in faults[place]
    backend = {"type": "custom", "base_url": "http://10.0.0.5:8000/v1", "prices": prices}
    assert faults_of(document_with(backend)) == {place.replace("models[0]", "models[0].backends[0]"): faults[place]}


def test_the_order_and_the_zone_do_not_change_the_content() -> None:
    first = [{"from": "2027-01-01T09:00:00+09:00", **DEAR}, {"from": "2026-01-01T00:00:00Z", **CHEAP}, {"input": 0, "output": "0.0"}]
    second = [{"output": "0", "input": "0"}, {**CHEAP, "from": "2026-01-01T00:00:00.000Z"}, {**DEAR, "from": "2027-01-01T00:00:00Z"}]
    documents = [parse_document(document_with({"type": "echo", "prices": prices}, prices=prices)) for prices in (first, second)]
    assert canonical(documents[0]) == canonical(documents[1])
    assert [entry.get("from") for entry in documents[0].as_dict()["models"][0]["prices"]] == [
        None, "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z",
    ]  # fmt: skip
    assert parse_document(documents[0].as_dict()) == documents[0]
    assert read_text(export_yaml(documents[0].as_dict()), {}) == documents[0]


def test_a_document_without_prices_of_backends_keeps_its_text() -> None:
    assert canonical(parse_document(document_with(prices=CHEAP))) == (
        '{"models":[{"backends":[{"type":"echo","weight":1}],"id":"chat","policy":"weighted","prices":{"input":"1","output":"2"}}]}'
    )


def test_numbers_of_a_file_are_the_digits_that_were_written() -> None:
    text = """\
models:
  - id: m
    parameters: {prices: 1.50}
    prices: {input: 123456.100000, output: 010}
    backends:
      - type: echo
        prices:
          - {input: 0.1, output: 1e-3}
          - {from: 2027-01-01T00:00:00Z, input: 1, output: .5}
"""
    entry = read_text(text, {}).as_dict()["models"][0]
    assert entry["prices"] == {"input": "123456.1", "output": "10"}
    assert entry["parameters"] == {"prices": 1.5}
    assert entry["backends"][0]["prices"] == [
        {"input": "0.1", "output": "0.001"}, {"from": "2027-01-01T00:00:00Z", "input": "1", "output": "0.5"},
    ]  # fmt: skip


def test_no_digit_of_a_file_is_rounded_away() -> None:
    text = "models:\n  - {id: m, prices: {input: 123456.1234560000001, output: 1}, backends: [{type: echo}]}\n"
    assert float("123456.1234560000001") == float("123456.123456")  # which is why
    with pytest.raises(Exception, match="at most 6 decimals"):
        read_text(text, {})


def test_the_latest_counts_whose_time_has_come() -> None:
    prices = [CHEAP, {"from": "2027-01-01T00:00:00Z", **DEAR}, {"from": "2026-01-01T00:00:00Z", "input": "0", "output": "0"}]
    route = table_of(parse_document(document_with(prices=prices)))[0].routes["chat"]
    moments = (0.0, YEAR_26 - 0.001, YEAR_26, YEAR_27 - 0.001, YEAR_27, YEAR_27 * 2)
    assert texts(route.prices, *moments) == ["1/2/", "1/2/", "0/0/", "0/0/", "3/4/0.5", "3/4/0.5"]
    planned = table_of(parse_document(document_with(prices=prices[1:])))[0].routes["chat"]
    assert texts(planned.prices, *moments) == [None, None, "0/0/", "0/0/", "3/4/0.5", "3/4/0.5"]


def test_a_backend_has_its_own_and_its_models_until_then() -> None:
    document = document_with(prices=[CHEAP, {"from": "2026-01-01T00:00:00Z", "input": "5", "output": "6"}])
    document["models"][0]["backends"] = [
        {"type": "echo"},
        {"type": "echo", "prices": DEAR},
        {"type": "echo", "prices": [{"from": "2027-01-01T00:00:00Z", **DEAR}]},
    ]
    route = table_of(parse_document(document))[0].routes["chat"]
    moments = (YEAR_26 - 1, YEAR_26, YEAR_27)
    assert route.targets[0].prices is None
    assert [texts(target.prices, *moments) for target in route.targets[1:]] == [
        ["3/4/0.5", "3/4/0.5", "3/4/0.5"], ["1/2/", "5/6/", "3/4/0.5"],
    ]  # fmt: skip


def test_a_stored_backend_whose_prices_are_unfit_is_left_out_and_the_others_serve() -> None:
    document = document_with(prices=CHEAP)
    document["models"][0]["backends"] = [{"type": "echo"}, {"type": "echo", "prices": [{"from": "soon", **DEAR}]}]
    stored = read_stored(document)
    assert [entry.id for entry in stored.document.models[0].backends] == ["echo-1"]
    assert "backend echo-2 of model chat is left out" in stored.problems[0]
