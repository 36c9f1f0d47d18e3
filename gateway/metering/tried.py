"""The attempts of a request that failed, as its record names them: JSON text, [[backend, outcome, milliseconds], ...] in order."""

from __future__ import annotations

from typing import Final

import orjson

MAX_BYTES: Final = 640
"""No text is longer. What a request may try is bounded, but not by so little: what does not fit is told by its number alone."""

NOT_TOLD: Final = '[["\u2026","not told",0.0]]'
"""In place of a text for which there was no room."""

_NAME_CHARS: Final = 64
_CUT: Final = "\u2026"


def tried_text(attempts: list[tuple[str, str, float]]) -> str | None:
    """None: none failed. Where not all fit, the last is `["\u2026", "3 more", 0.0]`."""
    if not attempts:
        return None
    shown = [(_short(backend), _short(outcome), round(ms, 1)) for backend, outcome, ms in attempts]
    text = orjson.dumps(shown)
    kept = len(shown)
    while len(text) > MAX_BYTES and kept:
        kept -= 1
        text = orjson.dumps([*shown[:kept], (_CUT, f"{len(shown) - kept} more", 0.0)])
    return text.decode()


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + _CUT
