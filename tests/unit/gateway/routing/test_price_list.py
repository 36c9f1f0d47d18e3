"""Prices as CSV: every fault with its line, nothing by halves, and what was written reads back as itself."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.routing.document import RevisionDocument, canonical
from gateway.routing.price_list import PricesInvalid, in_force, lines_of, read_csv, with_prices, write_csv
from gateway.routing.prices import seconds_of
from gateway.routing.reading import parse_document

SOON = "2027-01-01T00:00:00Z"
LATER = "2028-01-01T00:00:00Z"


def document(**prices: Any) -> RevisionDocument:
    """chat with echo-1 and dear; plain with echo-1. `prices`: of chat, dear and plain."""
    chat = {"id": "chat", "backends": [{"type": "echo"}, {"type": "echo", "id": "dear", "prices": prices.get("dear")}]}
    plain = {"id": "plain", "backends": [{"type": "echo"}]}
    return parse_document({"models": [chat | {"prices": prices.get("chat")}, plain | {"prices": prices.get("plain")}]})


def faults(text: str, known: RevisionDocument | None = None, from_: str | None = None) -> list[tuple[int | None, str, str]]:
    with pytest.raises(PricesInvalid) as caught:
        with_prices(known or document(), read_csv(text, from_))
    return [(fault.line, fault.place, fault.message) for fault in caught.value.faults]


def imported(text: str, known: RevisionDocument | None = None, from_: str | None = None) -> list[tuple[str, ...]]:
    return [line.cells() for line in lines_of(with_prices(known or document(), read_csv(text, from_)))]


def test_a_table_becomes_prices_and_these_the_same_table() -> None:
    text = f"""\
output,Model,input,cached,backend,from
0.60,chat,0.150,0.075,,
0.5,chat,0.12,,,2027-01-01T09:00:00+09:00
3,chat,2.000000,0,dear,
"100000",plain,00.000001,,,{LATER}
"""
    expected = [
        ("chat", "", "", "0.15", "0.6", "0.075"), ("chat", "", SOON, "0.12", "0.5", ""), ("chat", "dear", "", "2", "3", "0"),
        ("plain", "", LATER, "0.000001", "100000", ""),
    ]  # fmt: skip
    assert imported(text) == expected
    priced = with_prices(document(), read_csv(text))
    assert parse_document(priced.as_dict()) == priced
    again = with_prices(priced, read_csv(write_csv(lines_of(priced))))
    assert canonical(again) == canonical(priced)
    assert canonical(with_prices(document(), read_csv(write_csv(lines_of(priced))))) == canonical(priced)


@pytest.mark.parametrize("text", ["\ufeffmodel,input,output\r\nchat,1,2\r\n", "model,input,output\n\n , ,\nchat, 1 ,2"])
def test_spreadsheets_write_marks_and_blank_lines(text: str) -> None:
    assert imported(text) == [("chat", "", "", "1", "2", "")]


def test_what_is_not_in_the_table_stays() -> None:
    known = document(chat={"input": "1", "output": "2"}, dear=[{"from": SOON, "input": "3", "output": "4"}])
    assert imported(f"model,from,input,output\nchat,{SOON},9,9\n", known) == [
        ("chat", "", "", "1", "2", ""), ("chat", "", SOON, "9", "9", ""), ("chat", "dear", SOON, "3", "4", ""),
    ]  # fmt: skip
    assert imported(f"model,backend,from,input,output\nchat,dear,{SOON},9,9\n", known)[1:] == [("chat", "dear", SOON, "9", "9", "")]


def test_one_time_for_those_that_do_not_say() -> None:
    text = f"model,from,input,output\nchat,,1,2\nplain,{LATER},3,4\n"
    assert imported(text, from_=SOON) == [("chat", "", SOON, "1", "2", ""), ("plain", "", LATER, "3", "4", "")]


def test_a_mapping_stays_a_mapping() -> None:
    priced = with_prices(document(chat={"input": "1", "output": "2"}), read_csv("model,input,output\nchat,3,4\n"))
    assert priced.as_dict()["models"][0]["prices"] == {"input": "3", "output": "4"}


@pytest.mark.parametrize(
    ("row", "place", "says"),
    [
        ("chat,,,1", "", "has 4 values for 6 columns"),
        ("chat,,,1,2,3,4", "", "has 7 values for 6 columns"),
        (",,,1,2,", "model", "is missing"),
        ("chatt,,,1,2,", "model", 'did you mean "chat"'),
        ("chat,dera,,1,2,", "backend", 'did you mean "dear"'),
        ("plain,dear,,1,2,", "backend", 'no backend "dear"'),
        ("chat,,,,2,", "input", "is missing"),
        ("chat,,,1,,", "output", "is missing"),
        ("chat,,,1e3,2,", "input", "plain decimal"),
        ("chat,,,-1,2,", "input", "plain decimal"),
        ('chat,,,"1,5",2,', "input", "plain decimal"),
        ("chat,,,$1,2,", "input", "plain decimal"),
        ("chat,,,NaN,2,", "input", "plain decimal"),
        ("chat,,,.5,2,", "input", "plain decimal"),
        ("chat,,,1_0,2,", "input", "plain decimal"),
        ("chat,,,٣,2,", "input", "plain decimal"),
        ("chat,,,1,0.1234567,", "output", "at most 6 decimals"),
        ("chat,,,1,2,1000000.000001", "cached", "at most 1000000"),
        ("chat,,tomorrow,1,2,", "from", "2027-01-31T00:00:00Z"),
        ("chat,,2027-01-01,1,2,", "from", "RFC 3339"),
        ('chat,,,"1"x,2,', "", "not CSV"),
    ],
)
def test_one_fault_and_its_line(row: str, place: str, says: str) -> None:
    text = f"model,backend,from,input,output,cached\nplain,,,1,2,\n\n{row}\n"
    ((line, where, message),) = faults(text)
    assert (line, where) == (4, place)
    assert says in message


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("", 'the column "model" is missing'),
        ("model,input", 'the column "output" is missing'),
        ("model,input,output,price", 'unknown column "price"'),
        ("model,inptu,output", 'did you mean "input"'),
        ("model,input,output,input", 'the column "input" is there twice'),
        ("model;input;output", "unknown column"),
    ],
)
def test_a_header_is_needed_and_understood(header: str, says: str) -> None:
    found = faults(f"{header}\nchat,1,2\n")
    assert any(line == (1 if header else 2) and says in message for line, _, message in found), found


def test_all_faults_come_at_once_and_in_order() -> None:
    text = "model,input,output\nchat,x,y\nplain,1\nchat,1,2\nchat,3,4\n"
    assert [(line, place) for line, place, _ in faults(text)] == [(2, "input"), (2, "output"), (3, ""), (5, "")]
    assert [line for line, _, _ in faults("model,input,output\nnone,1,2\nchat,1,2\nnobody,1,2\n")] == [2, 4]


def test_a_table_full_of_faults_costs_what_is_shown_of_it() -> None:
    """A near name is looked for among all models: for each name that is told, once, and for no other."""
    known = parse_document({"models": [{"id": f"model-{n}", "backends": [{"type": "echo"}]} for n in range(200)]})
    many, one = (f"madel-{n}-x,b" for n in range(20_000)), (f"madel-1-x,b{n}" for n in range(20_000))
    for names in (many, one):
        text = "model,backend,input,output\n" + "".join(f"{name},1,2\n" for name in names)
        began_s = time.process_time()
        found = faults(text, known)
        assert len(found) == 100
        assert 'did you mean "model-' in found[0][2]
        assert time.process_time() - began_s < 5, "it would take a minute for all"
    header = ",".join(f"colunm{n}" for n in range(200_000))
    began_s = time.process_time()
    assert len(faults(f"{header}\n")) == 100
    assert time.process_time() - began_s < 5


def test_lines_over_several_lines_keep_their_numbers() -> None:
    text = 'model,input,output\n"chat\n",1,2\nplain,x,2\n'
    assert [(line, place) for line, place, _ in faults(text)] == [(4, "input")]


@pytest.mark.parametrize("text", ["", "\n\n", "model,input,output\n", "model,input,output\n,,\n"])
def test_a_table_without_a_price_is_a_mistake(text: str) -> None:
    assert faults(text)


def test_a_price_without_a_time_does_not_vanish_behind_one_with_a_time() -> None:
    known = document(chat=[{"input": "1", "output": "2"}, {"from": SOON, "input": "3", "output": "4"}])
    ((line, place, message),) = faults("model,input,output\nchat,9,9\n", known)
    assert (line, place) == (2, "from")
    assert SOON in message
    assert imported(f"model,from,input,output\nchat,,9,9\nchat,{SOON},8,8\n", known) == [
        ("chat", "", "", "9", "9", ""), ("chat", "", SOON, "8", "8", ""),
    ]  # fmt: skip


def test_what_counts_now() -> None:
    known = document(
        chat=[{"input": "1", "output": "1"}, {"from": SOON, "input": "2", "output": "2"}, {"from": LATER, "input": "3", "output": "3"}],
        dear=[{"from": LATER, "input": "4", "output": "4"}],
    )

    def inputs(at: str) -> set[str]:
        return {line.input for line in in_force(lines_of(known), seconds_of(at))}

    assert [inputs(at) for at in ("2026-12-31T23:59:59.999Z", SOON, "2027-12-31T23:59:59Z", LATER)] == [{"1"}, {"2"}, {"2"}, {"3", "4"}]
