"""The chain that binds the audit log: each entry's hash covers the entry and the hash before it.

    hash(n) = SHA-256( hash(n - 1) || canonical(n) )        hash before the first entry: 32 zero bytes

`canonical` is the entry as JSON: keys sorted, no spaces, UTF-8, `at` in RFC 3339 (UTC, six decimals). A line of an export is the same
object and its `hash`, so a copy that lies elsewhere can be checked by anybody with this one line of arithmetic and no database. The head
(newest id, its hash, number of entries) stands in `meta` and is written in the transaction of the entry: a tail that was cut off shows.

Whoever can write to the database and knows this file can make a whole new chain. What they cannot do is make one that goes through a
hash that somebody has kept elsewhere: that is the `anchor`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.errors import AuditHeadMissing
from gateway.store.tables import meta

START = bytes(32)
HEAD = "audit_head"
MAX_FAULTS = 100


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry; `id` 0: there is none. `digest`: its hash, 32 bytes. `count`: how many there are."""

    id: int
    digest: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Fault:
    """`id`: the entry at which it shows; None where it is not about one. `message` is a sentence."""

    id: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`entries` were read; `last_id` and `last_hash` (hex) name the newest of them: what to keep as an anchor."""

    entries: int
    last_id: int
    last_hash: str
    faults: tuple[Fault, ...]


def canonical(fields: Mapping[str, Any]) -> bytes:
    """What is hashed of an entry. Raises `TypeError`, `ValueError` for what no entry can be."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def link(previous: bytes, fields: Mapping[str, Any]) -> bytes:
    """The hash of an entry after one whose hash is `previous`."""
    return hashlib.sha256(previous + canonical(fields)).digest()


def moment(at_s: float) -> str:
    """Unix seconds -> RFC 3339 in UTC, always six decimals."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def lock_head(conn: AsyncConnection) -> Head:
    """The head, held until the transaction ends: who appends next waits. Raises `AuditHeadMissing`."""
    return _require(await read_head(conn, lock=True))


async def read_head(conn: AsyncConnection, *, lock: bool = False) -> Head | None:
    query = select(meta.c.value).where(meta.c.name == HEAD)
    text = (await conn.execute(query.with_for_update() if lock else query)).scalar()
    return None if text is None else _parsed(text)


async def write_head(conn: AsyncConnection, head: Head) -> None:
    value = json.dumps({"id": head.id, "hash": head.digest.hex(), "count": head.count})
    await conn.execute(update(meta).where(meta.c.name == HEAD).values(value=value))


class Walk:
    """Entries fed from the first to the last; finds those that are missing, altered or put in.

    After a fault it goes on from the hash that stands there, so that one altered entry is one fault and not all that follow.
    """

    def __init__(self, anchor: tuple[int, str] | None = None) -> None:
        self.faults: list[Fault] = []
        self.entries = 0
        self.last_id = 0
        self._digest = START
        self._anchor = anchor
        self._anchored = anchor is None

    def feed(self, entry_id: int, fields: Mapping[str, Any] | None, digest: bytes) -> None:
        """`fields` None: the entry cannot even be read."""
        if not self._follows(fields, digest):
            self._fault(entry_id, self._reason(entry_id))
        self.entries, self.last_id, self._digest = self.entries + 1, entry_id, digest
        if self._anchor is not None and self._anchor[0] == entry_id:
            self._anchored = True
            if self._anchor[1] != digest.hex():
                self._fault(entry_id, f"Entry {entry_id} is not the one that the given hash stands for: the log was written anew.")

    def finish(self, head: Head | None = None) -> Verdict:
        """`head`: where the log must end; None: it may end anywhere (a file)."""
        if head is not None:
            self._end(head)
        if not self._anchored and self._anchor is not None:
            self._fault(self._anchor[0], f"Entry {self._anchor[0]}, whose hash was given, is missing.")
        return Verdict(self.entries, self.last_id, self._digest.hex(), tuple(self.faults))

    def report(self, message: str) -> None:
        """A fault that is not about one entry."""
        self._fault(None, message)

    def _follows(self, fields: Mapping[str, Any] | None, digest: bytes) -> bool:
        try:
            return fields is not None and link(self._digest, fields) == digest
        except (TypeError, ValueError):  # a value that the gateway cannot have written
            return False

    def _reason(self, entry_id: int) -> str:
        first, last = self.last_id + 1, entry_id - 1
        if first == last:
            return f"Entry {first} is missing, or entry {entry_id} was altered."
        if first < last:
            return f"Entries {first} to {last} are missing, or entry {entry_id} was altered."
        before = f", or the hash of entry {self.last_id} was" if self.entries else ""
        return f"Entry {entry_id} was altered{before}."

    def _end(self, head: Head) -> None:
        if self.last_id < head.id:
            gone = f"Entry {head.id} is" if self.last_id == head.id - 1 else f"Entries {self.last_id + 1} to {head.id} are"
            self._fault(head.id, f"{gone} missing at the end.")
        elif self.last_id > head.id:
            self._fault(self.last_id, f"Entry {self.last_id} was put in: the gateway's newest one is {head.id}.")
        elif self._digest != head.digest:
            self._fault(head.id, f"Entry {head.id} is not the one that was written last: the log was written anew.")
        if self.entries != head.count and not self.faults:
            self.report(f"There are {self.entries} entries, and the gateway has written {head.count}.")

    def _fault(self, entry_id: int | None, message: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(entry_id, message))


def _require(head: Head | None) -> Head:
    # Made anew here, it would make a log whose end was cut off whole again.
    if head is None:
        raise AuditHeadMissing
    return head


def _parsed(text: str) -> Head | None:
    try:
        value = json.loads(text)
        return Head(int(value["id"]), bytes.fromhex(value["hash"]), int(value["count"]))
    except (ValueError, TypeError, KeyError):
        return None
