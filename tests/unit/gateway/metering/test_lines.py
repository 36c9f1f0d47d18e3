"""Both forms of the ledger's lines write and read the same: the one in Python, and the one in C where it is compiled."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.metering.lines as taken
from gateway.metering.ledger import sort_lines
from gateway.metering.record import FIELDS

WORDS = st.text(st.characters(codec="utf-8"), max_size=40)
WORD_OR_NONE = st.none() | WORDS
WHOLE = st.integers(-(2**63), 2**63 - 1)
# a double is rounded to six places in both, but may lie on the border between two
PLACES = st.floats(-4e9, 4e9).map(lambda value: round(value, 6)) | st.sampled_from((0.0, -0.0, 1.5, 1e-6, 1795242728.437149))
TIMES = st.none() | PLACES
BEGIN = st.tuples(WORDS, PLACES, WORDS, WORD_OR_NONE, WORDS, WORDS, WHOLE, WORD_OR_NONE, WHOLE, WHOLE, WHOLE, WHOLE, *(WORD_OR_NONE,) * 3)
END = st.tuples(
    WORDS, PLACES, WORDS, WORD_OR_NONE, WORDS, WORDS, WHOLE, WORD_OR_NONE, WORD_OR_NONE, WHOLE, WHOLE, WORDS, WHOLE, WHOLE, WORDS, WHOLE,
    TIMES, TIMES, TIMES, TIMES, WORD_OR_NONE, WORD_OR_NONE, WORD_OR_NONE, WHOLE, WHOLE, WORD_OR_NONE, WORD_OR_NONE,
)  # fmt: skip

REST = (0, 0, None, None, None)


def in_python() -> ModuleType:
    """The module as its source says it, whatever was compiled."""
    import gateway

    spec = importlib.util.spec_from_file_location("lines_in_python", Path(gateway.__file__).parent / "metering" / "lines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PYTHON = in_python()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(BEGIN)
def test_an_admission_is_the_same_in_both(values: tuple[Any, ...]) -> None:
    written = taken.begin_line(*values)
    assert orjson.loads(written) == orjson.loads(PYTHON.begin_line(*values)) == ["B", *values]
    assert written.count(b"\n") == 1
    assert written.endswith(b"]\n")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(END)
def test_an_ending_is_the_same_in_both(values: tuple[Any, ...]) -> None:
    assert orjson.loads(taken.end_line(*values)) == orjson.loads(PYTHON.end_line(*values)) == ["E", *values]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.tuples(PLACES, WORDS, WORDS, WORDS, WORD_OR_NONE, WORD_OR_NONE, WHOLE, WORDS, WHOLE, WHOLE, WHOLE, TIMES, TIMES))
def test_a_line_of_the_log_is_the_same_in_both(values: tuple[Any, ...]) -> None:
    written = taken.request_line(*values)
    told = orjson.loads(written)
    assert told == orjson.loads(PYTHON.request_line(*values))
    assert list(told.values()) == ["request", *values]
    assert written.endswith(b"}\n")
    assert written.count(b"\n") == 1


@pytest.mark.parametrize("module", [taken, PYTHON], ids=["taken", "python"])
def test_text_is_escaped_and_long_text_has_room(module: ModuleType) -> None:
    text = "".join(map(chr, range(300))) * 100 + "\U0001f511"
    written = module.begin_line(text, 1.0, "chat", None, "u", "m", 1, text, 0, 0, *REST)
    assert orjson.loads(written)[1] == text
    assert orjson.loads(written)[8] == text
    assert b"\0" not in written


@pytest.mark.parametrize("module", [taken, PYTHON], ids=["taken", "python"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 9.1e9])
def test_what_is_no_time_is_null(module: ModuleType, value: float) -> None:
    assert orjson.loads(module.begin_line("r", value, "chat", None, "u", "m", 1, None, 0, 0, *REST))[2] is None


@pytest.mark.parametrize("module", [taken, PYTHON], ids=["taken", "python"])
@pytest.mark.parametrize("value", [0.0000004, 0.1234567, 1234.5678915, 1795242728.4371495, -0.5])
def test_times_have_six_places(module: ModuleType, value: float) -> None:
    read = orjson.loads(module.begin_line("r", value, "chat", None, "u", "m", 1, None, 0, 0, *REST))[2]
    assert abs(read - value) <= 0.5000005e-6 + 2e-7
    assert round(read, 6) == read


@pytest.mark.parametrize("module", [taken, PYTHON], ids=["taken", "python"])
def test_what_cannot_be_written_is_refused(module: ModuleType) -> None:
    with pytest.raises((UnicodeEncodeError, TypeError)):  # orjson: a TypeError of its own
        module.begin_line("\ud800", 1.0, "chat", None, "u", "m", 1, None, 0, 0, *REST)
    with pytest.raises((OverflowError, TypeError)):
        module.begin_line("r", 1.0, "chat", None, "u", "m", 2**70, None, 0, 0, *REST)
    with pytest.raises(TypeError):
        module.begin_line("r")


def outcome(module: ModuleType, data: bytes) -> object:
    try:
        columns, begun, begun_before = module.parse_lines(data)
    except ValueError:
        return "torn"
    return [[(type(value), value) for value in column] for column in columns], list(begun.items()), begun_before


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(BEGIN | END, max_size=6), st.booleans())
def test_lines_are_read_the_same_by_both(written: list[tuple[Any, ...]], twice: bool) -> None:
    lines = [taken.begin_line(*values) if len(values) == 15 else taken.end_line(*values) for values in written]
    data = b"".join(lines * (2 if twice else 1))
    assert outcome(taken, data) == outcome(PYTHON, data)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(END, st.data())
def test_damaged_lines_are_read_the_same_by_both(values: tuple[Any, ...], data: st.DataObject) -> None:
    """Whatever a line has become: C reads in it what Python does, or calls it torn: then each is read for itself, with the same end."""
    whole = taken.begin_line(*values[:8], 1, 2, 3, 4, None, None, None) + taken.end_line(*values) * 2
    at = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(
        st.sampled_from(
            (b"", b",", b'"', b"\\", b"[", b"]", b"{}", b"0", b"-", b"1.5", b"e9", b"null", b"true", b"\xff", b"\n", b"\x01", b" ")
        )
    )
    damaged = whole[:at] + put + whole[at + data.draw(st.integers(0, 3)) :]
    found, wanted = outcome(taken, damaged), outcome(PYTHON, damaged)
    if found == "torn" and isinstance(wanted, tuple):
        assert sort_lines(damaged).columns == [[value for _, value in column] for column in wanted[0]]
    else:
        assert found == wanted


def test_space_behind_a_text_is_read_too() -> None:
    """JSON allows it and no writer of ours writes it: such lines are read one by one."""
    values = ["req-1", *[None] * 4, "m", *[None] * (len(FIELDS) - 6)]
    line = orjson.dumps(["E", *values]) + b"\n"
    spaced = line.replace(b'"m"', b'"m" ')
    assert sort_lines(spaced) == sort_lines(line)
    assert sort_lines(line).columns == [[value] for value in values]


@pytest.mark.parametrize("module", [taken, PYTHON], ids=["taken", "python"])
@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n"])
def test_no_lines(module: ModuleType, data: bytes) -> None:
    assert module.parse_lines(data) == ([[] for _ in range(27)], {}, [])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(END, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=200))
def test_values_that_come_again_are_read_the_same_by_both(ends: list[tuple[Any, ...]], order: list[int]) -> None:
    """A value is remembered by its bytes: of many, some are remembered in the same place."""
    rows = [
        (f"req-{number}", *ends[which % len(ends)][1:5], f"m{number % 150}", *ends[which % len(ends)][6:])
        for number, which in enumerate(order)
    ]
    data = b"".join(taken.end_line(*row) for row in rows)
    assert outcome(taken, data) == outcome(PYTHON, data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(PLACES, min_size=1, max_size=50))
def test_times_are_read_to_the_last_bit(times: list[float]) -> None:
    values: list[Any] = [
        "r", 1.0, "chat", None, "u", "m", 1, None, None, 1, 200, "success", 1, 1, "backend", 0, 1.0, None, None, None, None, None, None,
        0, 0, None, None,
    ]  # fmt: skip
    started_at = FIELDS.index("started_at")
    lines = [taken.end_line(*values[:started_at], at, *values[started_at + 1 :]) for at in times]
    columns = taken.parse_lines(b"".join(lines))[0]
    assert columns[started_at] == [orjson.loads(line)[2] for line in lines]
