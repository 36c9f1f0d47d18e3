"""Marked secrets, and the search for them in whatever they must not be in, however it was written there."""

from __future__ import annotations

import base64
import random
import re
import string
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_CORE_CHARS = 20
_MIN_CHARS = 12  # fewer are somewhere by chance
_ALPHABET = string.ascii_letters + string.digits
# What no log may hold, whoever made it: keys of this gateway, login tokens, hashes of passwords, private keys, credentials of a request.
SHAPES: Mapping[str, re.Pattern[bytes]] = {
    "an API key": re.compile(rb"sk-gw-[a-z0-9]{12}-[A-Za-z0-9]{43}"),
    "a login token": re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."),
    "the hash of a password": re.compile(rb"\$argon2id?\$"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a credential": re.compile(rb"(?i)bearer [a-z0-9._~+/-]{20,}"),
}


@dataclass
class Marks:
    """Secrets by name. Each has a core of letters and digits that is nowhere else in the world; it is the core that is searched for."""

    cores: dict[str, str] = field(default_factory=dict)
    _by_start: dict[bytes, list[tuple[str, str, bytes]]] = field(default_factory=dict)

    def make(self, name: str, before: str = "", after: str = "") -> str:
        """A new secret: a fresh core between these two."""
        core = "".join(random.SystemRandom().choice(_ALPHABET) for _ in range(_CORE_CHARS))
        return before + self.learn(name, core) + after

    def learn(self, name: str, secret: str) -> str:
        """A secret that the gateway made: searched for whole."""
        assert name not in self.cores, name
        assert len(secret) >= _MIN_CHARS
        self.cores[name] = secret
        for encoding, form in forms(secret.encode()):
            self._by_start.setdefault(form[:_MIN_CHARS], []).append((name, encoding, form))
        return secret

    def found_in(self, data: bytes, allowed: Iterable[str] = ()) -> list[str]:
        """`name (encoding)` of every secret in `data` but those allowed."""
        skipped, found = set(allowed), set()
        for piece in data.split(b"\0" * 64):  # files of shared memory are tens of megabytes of nothing
            for name, encoding, form, at in self._begun(piece):
                if name not in skipped and piece.startswith(form, at):
                    found.add(f"{name} ({encoding})")
        return sorted(found)

    def _begun(self, data: bytes) -> Iterator[tuple[str, str, bytes, int]]:
        """(name, encoding, form, where) of all whose beginning is in `data`: one pass over it, however many secrets there are."""
        for at in range(len(data) - _MIN_CHARS + 1):
            for name, encoding, form in self._by_start.get(data[at : at + _MIN_CHARS], ()):
                yield name, encoding, form, at


def forms(core: bytes) -> list[tuple[str, bytes]]:
    """How these bytes look in a text that holds them: plain (letters and digits stay as they are in JSON and URLs), hex, base64."""
    made = [("plain", core), ("hex", core.hex().encode()), ("HEX", core.hex().upper().encode()), ("reversed", core[::-1])]
    made += [("in a URL", urllib.parse.quote(core, safe="").encode())]
    for offset in range(3):  # where the core begins within base64's groups of three bytes
        text = base64.b64encode(bytes(offset) + core)
        inner = text[-(-offset * 8 // 6) : (offset + len(core)) * 8 // 6]
        made += [("base64", inner), ("base64url", inner.replace(b"+", b"-").replace(b"/", b"_"))]
    return made


def shapes_in(data: bytes) -> list[str]:
    """What in `data` looks like a secret of this gateway; never the secret itself."""
    return [f"{name} at byte {match.start()}" for name, shape in SHAPES.items() for match in shape.finditer(data)]
