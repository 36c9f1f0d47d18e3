"""API keys. A key has one stable id and, while a rotation's grace lasts, more than one valid text (digest)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.principal import Budget, Limits
from gateway.store.tables import api_key_digests, api_keys, users

_COLUMNS = (
    api_keys.c.id, api_keys.c.user_id, api_keys.c.name, api_keys.c.models, api_keys.c.scopes, api_keys.c.rpm, api_keys.c.tpm,
    api_keys.c.concurrency, api_keys.c.budget_pusd, api_keys.c.budget_window, api_keys.c.created_at, api_keys.c.expires_at,
    api_keys.c.revoked_at,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key without its text. Times are Unix seconds; `models` are globs over route ids."""

    id: str
    user_id: str
    name: str
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    limits: Limits
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


async def insert_key(conn: AsyncConnection, key: ApiKey, digest: bytes) -> None:
    await insert_keys(conn, [(key, digest)])


async def insert_keys(conn: AsyncConnection, issued: Sequence[tuple[ApiKey, bytes]]) -> None:
    """Many keys with their digests in two statements."""
    await conn.execute(insert(api_keys), [_values(key) for key, _ in issued])
    rows = [{"digest": digest, "key_id": key.id, "created_at": key.created_at, "expires_at": None} for key, digest in issued]
    await conn.execute(insert(api_key_digests), rows)


async def update_key(conn: AsyncConnection, key: ApiKey) -> None:
    """Write every column of a key that exists."""
    await conn.execute(update(api_keys).where(api_keys.c.id == key.id).values(_values(key)))


async def by_id(conn: AsyncConnection, key_id: str) -> ApiKey | None:
    row = (await conn.execute(select(*_COLUMNS).where(api_keys.c.id == key_id))).one_or_none()
    return None if row is None else _key(row)


async def page(
    conn: AsyncConnection, *, after: ApiKey | None = None, limit: int = 50, user_id: str = "", search: str = "", revoked: bool = False
) -> list[ApiKey]:
    """Keys, oldest first, those after `after`. `search` is a part of the name or the start of the id; `revoked`: those too."""
    query = select(*_COLUMNS).order_by(api_keys.c.created_at, api_keys.c.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(api_keys.c.created_at, api_keys.c.id) > (after.created_at, after.id))
    if user_id:
        query = query.where(api_keys.c.user_id == user_id)
    if search:
        query = query.where(or_(api_keys.c.name.contains(search, autoescape=True), api_keys.c.id.startswith(search, autoescape=True)))
    if not revoked:
        query = query.where(api_keys.c.revoked_at.is_(None))
    return [_key(row) for row in (await conn.execute(query)).all()]


async def revoke(conn: AsyncConnection, key_id: str, now_s: float) -> None:
    await conn.execute(update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=now_s))


async def replace_digest(conn: AsyncConnection, key_id: str, digest: bytes, now_s: float, grace_end: float) -> None:
    """`digest` from now on; older ones until `grace_end` at most. Those whose grace is over are forgotten."""
    mine = api_key_digests.c.key_id == key_id
    ends = api_key_digests.c.expires_at
    await conn.execute(update(api_key_digests).where(mine, or_(ends.is_(None), ends > grace_end)).values(expires_at=grace_end))
    await conn.execute(delete(api_key_digests).where(mine, ends <= now_s))
    await _insert_digest(conn, key_id, digest, now_s)


def digest_rows(key_id: str | None = None, user_id: str | None = None) -> Select[Any]:
    """What process tables are made of: (digest, its end, owner's role, owner disabled at, then the columns of `live_key`)."""
    query = (
        select(api_key_digests.c.digest, api_key_digests.c.expires_at, users.c.role, users.c.disabled_at, *_COLUMNS)
        .join_from(api_key_digests, api_keys, api_key_digests.c.key_id == api_keys.c.id)
        .join(users, api_keys.c.user_id == users.c.id)
    )
    if key_id is not None:
        query = query.where(api_keys.c.id == key_id)
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    return query


def limits_of(rpm: int | None, tpm: int | None, concurrency: int | None, budget_pusd: int | None, budget_window: str | None) -> Limits:
    return Limits(rpm, tpm, concurrency, None if budget_pusd is None else Budget(budget_pusd, budget_window))


def _values(key: ApiKey) -> dict[str, Any]:
    budget = key.limits.budget
    names = ("id", "user_id", "name", "models", "scopes", "created_at", "expires_at", "revoked_at")
    values = {name: getattr(key, name) for name in names}
    values |= {"rpm": key.limits.rpm, "tpm": key.limits.tpm, "concurrency": key.limits.concurrency}
    return values | {"budget_pusd": budget and budget.amount_pusd, "budget_window": budget and budget.window}


async def _insert_digest(conn: AsyncConnection, key_id: str, digest: bytes, now_s: float) -> None:
    await conn.execute(insert(api_key_digests).values(digest=digest, key_id=key_id, created_at=now_s, expires_at=None))


def _key(row: Any) -> ApiKey:
    key_id, user_id, name, models, scopes, *limits, created_at, expires_at, revoked_at = row
    return ApiKey(key_id, user_id, name, models, scopes, limits_of(*limits), created_at, expires_at, revoked_at)
