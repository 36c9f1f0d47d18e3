from __future__ import annotations

import orjson

from gateway.metering.tried import MAX_BYTES, NOT_TOLD, tried_text


def test_nothing_failed() -> None:
    assert tried_text([]) is None


def test_attempts_in_order() -> None:
    text = tried_text([("a", "refused", 1.04), ("m/b", "503", 20.0)])
    assert text is not None
    assert orjson.loads(text) == [["a", "refused", 1.0], ["m/b", "503", 20.0]]


def test_what_does_not_fit_is_counted() -> None:
    text = tried_text([(f"{number:03}" + "\u00e9" * 200, "refused", 1.0) for number in range(40)])
    assert text is not None
    assert len(text.encode()) <= MAX_BYTES
    told = orjson.loads(text)
    assert told[0][0].startswith("000\u00e9")
    assert told[0][0].endswith("\u2026")
    assert told[-1] == ["\u2026", f"{40 - (len(told) - 1)} more", 0.0]
    assert orjson.loads(NOT_TOLD)[0][0] == "\u2026"
