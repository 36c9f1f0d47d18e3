"""What is encrypted at rest, and upstream keys, which are: referenced by name, never shown again."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.errors import SecretUnreadable
from gateway.store.secret_key import STORED_SECRETS, SecretKeys, derive, fingerprint
from gateway.store.tables import secrets


class SecretBox:
    """Encrypts with the key derived from `secret_key` for this purpose; opens what it or any of `previous` encrypted.

    `fingerprint`, `previous`: of these keys, to be compared with the database's.
    """

    def __init__(self, secret_key: str, previous: Sequence[str] = (), purpose: str = STORED_SECRETS) -> None:
        self.fingerprint = fingerprint(secret_key)
        self.previous = tuple(map(fingerprint, previous))
        self._fernet = MultiFernet([Fernet(base64.urlsafe_b64encode(derive(key, purpose))) for key in (secret_key, *previous)])

    @classmethod
    def of(cls, keys: SecretKeys, purpose: str = STORED_SECRETS) -> SecretBox:
        return cls(keys.current, keys.previous, purpose)

    def seal(self, value: str) -> bytes:
        return self.seal_bytes(value.encode())

    def seal_bytes(self, value: bytes) -> bytes:
        """Any thread may."""
        return self._fernet.encrypt(value)

    def open(self, name: str, ciphertext: bytes) -> str:
        """Raises `SecretUnreadable`. `name` is for the message."""
        return self.open_bytes(name, ciphertext).decode()

    def open_bytes(self, name: str, ciphertext: bytes) -> bytes:
        """Raises `SecretUnreadable`."""
        try:
            return self._fernet.decrypt(ciphertext)
        except InvalidToken:
            raise SecretUnreadable(name) from None

    def reseal(self, name: str, ciphertext: bytes) -> bytes:
        """The same secret under the newest key. Raises `SecretUnreadable`."""
        try:
            return self._fernet.rotate(ciphertext)
        except InvalidToken:
            raise SecretUnreadable(name) from None


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """What may be shown of a secret. `updated_at`: Unix seconds."""

    name: str
    updated_at: float


async def names(conn: AsyncConnection) -> list[SecretInfo]:
    query = select(secrets.c.name, secrets.c.updated_at).order_by(secrets.c.name)
    return [SecretInfo(*row) for row in (await conn.execute(query)).all()]


async def read_all(conn: AsyncConnection, box: SecretBox) -> dict[str, str]:
    """Every secret in the clear, by name. Raises `SecretUnreadable` for the first that does not open."""
    rows = await conn.execute(select(secrets.c.name, secrets.c.ciphertext))
    return {name: box.open(name, ciphertext) for name, ciphertext in rows.all()}


async def read_readable(conn: AsyncConnection, box: SecretBox) -> tuple[dict[str, str], tuple[SecretUnreadable, ...]]:
    """(those that open, in the clear, by name; the fault of each of the others, in the order of their names)."""
    opened: dict[str, str] = {}
    faults: list[SecretUnreadable] = []
    for name, ciphertext in (await conn.execute(select(secrets.c.name, secrets.c.ciphertext).order_by(secrets.c.name))).all():
        try:
            opened[name] = box.open(name, ciphertext)
        except SecretUnreadable as fault:
            faults.append(fault)
    return opened, tuple(faults)


async def holds(conn: AsyncConnection, box: SecretBox, name: str, value: str) -> bool | None:
    """Is `value` what is stored under this name? None: nothing is."""
    old = (await conn.execute(select(secrets.c.ciphertext).where(secrets.c.name == name))).scalar()
    return None if old is None else _same(box, name, old, value)


async def put(conn: AsyncConnection, box: SecretBox, name: str, value: str) -> bool:
    """Store a secret. False: it was stored with this value already, and nothing was written."""
    old = (await conn.execute(select(secrets.c.ciphertext).where(secrets.c.name == name))).scalar()
    values = {"ciphertext": box.seal(value), "updated_at": time.time()}
    if old is None:
        await conn.execute(insert(secrets).values(name=name, **values))
        return True
    if _same(box, name, old, value):
        return False
    await conn.execute(update(secrets).where(secrets.c.name == name).values(values))
    return True


async def remove(conn: AsyncConnection, name: str) -> bool:
    """True if it was there."""
    return (await conn.execute(delete(secrets).where(secrets.c.name == name))).rowcount > 0


async def remove_all(conn: AsyncConnection) -> list[str]:
    """The names of those that were there."""
    found = [info.name for info in await names(conn)]
    await conn.execute(delete(secrets))
    return found


async def reseal_all(conn: AsyncConnection, box: SecretBox) -> int:
    """Encrypt every secret anew with the newest key; returns how many. For the rotation of GATEWAY_SECRET_KEY."""
    rows = (await conn.execute(select(secrets.c.name, secrets.c.ciphertext))).all()
    for name, ciphertext in rows:
        await conn.execute(update(secrets).where(secrets.c.name == name).values(ciphertext=box.reseal(name, ciphertext)))
    return len(rows)


def _same(box: SecretBox, name: str, ciphertext: bytes, value: str) -> bool:
    try:
        return box.open(name, ciphertext) == value
    except SecretUnreadable:
        return False
