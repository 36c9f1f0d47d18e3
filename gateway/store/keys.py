"""API keys. A key has one stable id and, while a rotation's grace lasts, more than one valid text (digest)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from auth.keys import PREFIX
from auth.principal import Limits
from gateway.store.limits import NAMES as _LIMITS
from gateway.store.limits import limit_values, limits_of
from gateway.store.search import holds
from gateway.store.tables import api_key_digests, api_keys, key_uses, users
from gateway.store.users import holding as users_holding

_K = api_keys.c
_PLAIN = (
    "id", "user_id", "name", "models", "scopes", "created_at", "expires_at", "revoked_at", "description", "networks", "prefix",
    "created_by", "held", "content_log",
)  # fmt: skip
_SEARCHED_CHARS = 600  # at most 2,400 bytes: what PostgreSQL takes into an index
_COLUMNS = tuple(_K[name] for name in (*_PLAIN, *_LIMITS))
# What process tables are made of, behind the digest and its owner: see `digest_rows`.
_LIVE = tuple(_K[name] for name in ("id", "user_id", "models", "scopes", "networks", "expires_at", "revoked_at", "content_log", *_LIMITS))


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key without its text. Times are Unix seconds; `models` are globs over route ids.

    `networks`: CIDR; () = it may be used from anywhere. `prefix`: how the text of an imported key begins; None: it was minted here.
    `created_by`: a user id, or the way ("cli", "init"); None: from before this was kept. `held`: what of it an admin has set: names of
    models, networks, expires_at and the limits. `content_log`: its requests and their answers are kept.
    """

    id: str
    user_id: str
    name: str
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    limits: Limits
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    description: str = ""
    networks: tuple[str, ...] = ()
    prefix: str | None = None
    created_by: str | None = None
    held: tuple[str, ...] = ()
    content_log: bool = False

    @property
    def begins(self) -> str:
        """How its text begins: enough to recognise it by, of no use to anyone else."""
        return f"{PREFIX}{self.id}" if self.prefix is None else self.prefix


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as lists show it. `team_id`: its owner's; `last_used_at`: Unix seconds, to the minute; None: never, as far as is known."""

    key: ApiKey
    owner_email: str
    team_id: str | None
    last_used_at: float | None


async def insert_key(conn: AsyncConnection, key: ApiKey, digest: bytes) -> None:
    await insert_keys(conn, [(key, digest)])


async def insert_keys(conn: AsyncConnection, issued: Sequence[tuple[ApiKey, bytes]]) -> None:
    """Many keys with their digests in two statements."""
    await conn.execute(insert(api_keys), [_values(key) for key, _ in issued])
    rows = [{"digest": digest, "key_id": key.id, "created_at": key.created_at, "expires_at": None} for key, digest in issued]
    await conn.execute(insert(api_key_digests), rows)


async def update_key(conn: AsyncConnection, key: ApiKey) -> None:
    """Write every column of a key that exists."""
    await conn.execute(update(api_keys).where(_K.id == key.id).values(_values(key)))


async def by_id(conn: AsyncConnection, key_id: str) -> ApiKey | None:
    row = (await conn.execute(select(*_COLUMNS).where(_K.id == key_id))).one_or_none()
    return None if row is None else _key(row)


async def is_taken(conn: AsyncConnection, key_id: str, digest: bytes) -> bool:
    """Is there a key with this id, or one whose text has (or had, in its running grace) this digest?"""
    query = select(func.count()).select_from(api_key_digests).where(api_key_digests.c.digest == digest)
    taken = (await conn.execute(query)).scalar_one() or await by_id(conn, key_id)
    return bool(taken)


async def listed(conn: AsyncConnection, key_id: str) -> ListedKey | None:
    """One key as lists show it."""
    found = await _listed(conn, select(_K.id).where(_K.id == key_id))
    return found[0] if found else None


async def page(
    conn: AsyncConnection,
    *,
    after: ApiKey | None = None,
    limit: int = 50,
    user_id: str = "",
    team_id: str | None = None,
    search: str = "",
    revoked: bool = False,
) -> list[ListedKey]:
    """Keys, oldest first, those after `after`. `revoked`: those too. `team_id`: only those of its users; None: of all.

    `search`: a part of the name, the description, the beginning of the text ("sk-gw-" and the id), or of the owner's e-mail or name; in
    any case, without wildcards; of a long description the beginning counts.
    """
    query = select(_K.id).order_by(_K.created_at, _K.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(_K.created_at, _K.id) > (after.created_at, after.id))
    if user_id:
        query = query.where(_K.user_id == user_id)
    if team_id is not None:
        query = query.where(_K.user_id.in_(select(users.c.id).where(users.c.team_id == team_id)))
    if search.strip():
        query = query.where(_holding(conn, search))
    if not revoked:
        query = query.where(_K.revoked_at.is_(None))
    return await _listed(conn, query)


async def revoke(conn: AsyncConnection, key_id: str, now_s: float) -> None:
    await conn.execute(update(api_keys).where(_K.id == key_id).values(revoked_at=now_s))


async def replace_digest(conn: AsyncConnection, key_id: str, digest: bytes, now_s: float, grace_end: float) -> None:
    """`digest` from now on; older ones until `grace_end` at most. Those whose grace is over are forgotten."""
    mine = api_key_digests.c.key_id == key_id
    ends = api_key_digests.c.expires_at
    await conn.execute(update(api_key_digests).where(mine, or_(ends.is_(None), ends > grace_end)).values(expires_at=grace_end))
    await conn.execute(delete(api_key_digests).where(mine, ends <= now_s))
    await conn.execute(insert(api_key_digests).values(digest=digest, key_id=key_id, created_at=now_s, expires_at=None))


async def grace_end(conn: AsyncConnection, key_id: str, now_s: float) -> float | None:
    """When the last of its older texts ends; None: there is none."""
    ends = api_key_digests.c.expires_at
    found: float | None = (await conn.execute(select(func.max(ends)).where(api_key_digests.c.key_id == key_id, ends > now_s))).scalar()
    return found


def digest_rows(key_ids: Collection[str] | None = None) -> Select[Any]:
    """What process tables are made of, of these keys or of all.

    (digest, its end, owner's role, owner disabled at, owner's team, key id, owner's id, models, scopes, networks, expires at, revoked at,
    content log, then the columns of limits).
    """
    query = (
        select(api_key_digests.c.digest, api_key_digests.c.expires_at, users.c.role, users.c.disabled_at, users.c.team_id, *_LIVE)
        .join_from(api_key_digests, api_keys, api_key_digests.c.key_id == _K.id)
        .join(users, _K.user_id == users.c.id)
    )
    return query if key_ids is None else query.where(_K.id.in_(key_ids))


async def _listed(conn: AsyncConnection, query: Select[Any]) -> list[ListedKey]:
    """`query`: the ids. Chosen by the index that holds all that lists choose by; only what was chosen is then read, joined and sorted."""
    chosen = query.subquery()
    rows = await conn.execute(
        select(*_COLUMNS, users.c.email, users.c.team_id, key_uses.c.at)
        .join_from(chosen, api_keys, chosen.c.id == _K.id)
        .join(users, _K.user_id == users.c.id)
        .outerjoin(key_uses, _K.id == key_uses.c.key_id)
        .order_by(_K.created_at, _K.id)
    )
    return [ListedKey(_key(row[:-3]), *row[-3:]) for row in rows.all()]


def _holding(conn: AsyncConnection, search: str) -> ColumnElement[bool]:
    owners = select(users.c.id).where(or_(*users_holding(conn, search)))
    return or_(holds(conn, _K.search_text, search.strip().lower()), _K.user_id.in_(owners))


def _values(key: ApiKey) -> dict[str, Any]:
    search_text = f"{key.begins}\n{key.name}\n{key.description}".lower()[:_SEARCHED_CHARS]
    return {name: getattr(key, name) for name in _PLAIN} | limit_values(key.limits) | {"search_text": search_text}


def _key(row: Sequence[Any]) -> ApiKey:
    plain, limits = dict(zip(_PLAIN, row, strict=False)), row[len(_PLAIN) :]
    return ApiKey(**plain, limits=limits_of(*limits))
