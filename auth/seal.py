"""Notes that the gateway gives somebody to keep and bring back: encrypted, authenticated, good for one purpose and a short time.

What a login through a provider needs to remember lies with the browser in this form: any process of the gateway can go on with it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import orjson
from cryptography.fernet import Fernet, InvalidToken

_MAX_CHARS = 8192


class Seal:
    """`key`: 32 bytes, used for nothing else."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def close(self, purpose: str, note: Mapping[str, str], now_s: float) -> str:
        """The note as text that is fit for cookies and URLs."""
        return self._fernet.encrypt_at_time(orjson.dumps([purpose, dict(note)]), int(now_s)).decode()

    def open(self, purpose: str, text: str, max_age_s: int, now_s: float) -> dict[str, str] | None:
        """The note, if we closed it for this purpose, at most `max_age_s` ago."""
        if len(text) > _MAX_CHARS:
            return None
        try:
            found, note = orjson.loads(self._fernet.decrypt_at_time(text.encode(), max_age_s, int(now_s)))
        except (InvalidToken, UnicodeEncodeError):
            return None
        return dict(note) if found == purpose else None
