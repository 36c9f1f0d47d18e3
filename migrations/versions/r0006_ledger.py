"""Raw rows of usage move to a table for each UTC day, and their roll-ups are made anew with all that reports ask for.

Older rows were not told of what team they were: they count for the team that their user is of now. What is computed here is repeated from
gateway.store.rows and gateway.store.rollups, because this script must go on doing the same whatever becomes of those modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

logger = structlog.get_logger(__name__)

_PAGE = 2000
_TOLD_EVERY = 100_000
_HOUR_S, _DAY_S, _SPLIT = 3600, 86_400, 1_000_000
_USED = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_microusd", "cost_rest_pusd")
_BUCKET = ("at", "user_id", "key_id", "model", "backend", "ending", "team_id", "revision", "experiment", "arm")
_OLD = (
    "request_id", "started_at", "operation", "key_id", "user_id", "model", "revision", "client_request_id", "backend", "attempts",
    "status", "ending", "prompt_tokens", "completion_tokens", "token_source", "cost_pusd", "duration_ms", "ttft_ms", "queue_ms",
    "connect_ms", "experiment", "arm",
)  # fmt: skip
_NEW = (*_OLD, "team_id", "cached_tokens", "reasoning_tokens", "price", "tried")
_FLOATS = ("started_at", "duration_ms", "ttft_ms", "queue_ms", "connect_ms")
_GROUPS = {
    "all": (), "key": ("key_id",), "user": ("user_id",), "team": ("team_id",), "model": ("model",), "backend": ("backend",),
    "ending": ("ending",), "arm": ("experiment", "arm"), "version": ("revision",),
}  # fmt: skip
_SCOPES = {"": (), "model": ("model",), "team": ("team_id",)}
_MANY = ("key", "user")

Cells = dict[tuple[Any, ...], list[int]]


def upgrade() -> None:
    bind = op.get_bind()
    for table in ("usage_by_hour", "usage_by_day"):
        op.create_table(
            table,
            sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
            *(sa.Column(name, sa.Text(), nullable=False) for name in _BUCKET[1:7]),
            sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
            *(sa.Column(name, sa.Text(), nullable=False) for name in _BUCKET[8:]),
            *_used(),
            sa.PrimaryKeyConstraint(*_BUCKET, name=op.f(f"pk_{table}")),
        )
        for columns in (["key_id", "at"], ["user_id", "at"], ["team_id", "model", "at"]):
            op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns)
    op.create_table(
        "usage_totals",
        sa.Column("step_s", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        *_used(),
        sa.PrimaryKeyConstraint("step_s", "kind", "scope", "at", "name", name=op.f("pk_usage_totals")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_of_each",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("team_id", sa.Text(), nullable=False),
        *_used(),
        sa.PrimaryKeyConstraint("kind", "scope", "name", "at", "team_id", name=op.f("pk_usage_of_each")),
        sqlite_with_rowid=False,
    )
    columns = ["kind", "scope", "team_id", "name", "at"]
    op.create_index(op.f(f"ix_usage_of_each_{'_'.join(columns)}"), "usage_of_each", columns)
    op.add_column("ledger_segments", sa.Column("folder", sa.Text(), nullable=True))
    op.add_column("ledger_segments", sa.Column("finished_at", sa.Double(), nullable=True))
    _name_finished_segments(bind)
    _move(bind)
    op.drop_table("usage")
    op.drop_table("usage_rollup")


def _used() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in _USED]


def _name_finished_segments(bind: sa.Connection) -> None:
    """Names of finished segments were forgotten until now. Those before one that is there must not look like missing ones."""
    segments = sa.table("ledger_segments", *(sa.column(name) for name in ("name", "offset", "updated_at", "finished_at")))
    known = bind.execute(sa.select(segments.c.name, segments.c.updated_at)).all()
    names = {name for name, _ in known}
    for name, updated_at in known:
        writer, _, number = name.removesuffix(".seg").rpartition("-")
        for before in range(int(number) if number.isdigit() else 0):
            earlier = f"{writer}-{before:06d}.seg"
            if earlier not in names:
                names.add(earlier)
                bind.execute(sa.insert(segments).values(name=earlier, offset=0, updated_at=updated_at, finished_at=updated_at))


def _move(bind: sa.Connection) -> None:
    """Oldest first, so that a day is whole when the next one begins: then its roll-ups are written."""
    old = sa.table("usage", *(sa.column(name) for name in _OLD))
    users = sa.table("users", sa.column("id"), sa.column("team_id"))
    teams = {row.id: row.team_id for row in bind.execute(sa.select(users.c.id, users.c.team_id)).all()}
    count = bind.execute(sa.select(sa.func.count()).select_from(old)).scalar_one()
    if count:
        logger.info("moving the rows of usage to a table for each day", rows=count)
    after, moved, day = (-1e300, ""), 0, None
    hours: Cells = {}
    while rows := _page(bind, old, after):
        for of_day, part in _days(rows):
            if of_day != day:
                _write(bind, hours)
                day, hours = of_day, {}
                _make(of_day)
            new = [_extended(row, teams.get(row["user_id"])) for row in part]
            bind.execute(sa.insert(sa.table(_name(of_day), *(sa.column(name) for name in (*_NEW, "digest")))), new)
            for row in new:
                _count(hours, row)
        after = (rows[-1]["started_at"], rows[-1]["request_id"])
        moved += len(rows)
        if moved // _TOLD_EVERY != (moved - len(rows)) // _TOLD_EVERY:
            logger.info("moving the rows of usage", moved=moved, of=count)
    _write(bind, hours)


def _page(bind: sa.Connection, old: Any, after: tuple[float, str]) -> list[Any]:
    beyond = (old.c.started_at > after[0]) | ((old.c.started_at == after[0]) & (old.c.request_id > after[1]))
    query = sa.select(*(old.c[name] for name in _OLD)).where(old.c.started_at >= after[0], beyond)
    return list(bind.execute(query.order_by(old.c.started_at, old.c.request_id).limit(_PAGE)).mappings().all())


def _days(rows: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    days: dict[int, list[Any]] = {}
    for row in rows:
        days.setdefault(int(row["started_at"] // _DAY_S), []).append(row)
    yield from days.items()


def _name(day: int) -> str:
    return "usage_" + datetime.fromtimestamp(day * _DAY_S, UTC).strftime("%Y%m%d")


def _make(day: int) -> None:
    name, texts = _name(day), ("key_id", "client_request_id", "backend", "experiment", "arm", "team_id", "price", "tried")
    kinds: dict[str, Any] = {column: sa.Text() for column in _NEW}
    kinds |= {column: sa.Double() for column in _FLOATS} | {column: sa.Integer() for column in ("attempts", "status")}
    tokens = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    kinds |= {column: sa.BigInteger() for column in ("revision", "cost_pusd", *tokens)}
    optional = {*texts, "revision", *_FLOATS} - {"started_at"}
    op.create_table(
        name,
        *(sa.Column(column, kinds[column], nullable=column in optional) for column in _NEW),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f(f"pk_{name}")),
    )
    op.create_index(op.f(f"ix_{name}_key_id_started_at"), name, ["key_id", "started_at"])
    op.create_index(op.f(f"ix_{name}_started_at"), name, ["started_at"])


def _extended(row: Any, team_id: str | None) -> dict[str, Any]:
    values = dict(row) | {"team_id": team_id, "cached_tokens": 0, "reasoning_tokens": 0, "price": None, "tried": None}
    hashed = [values[name] if name not in _FLOATS or values[name] is None else float(values[name]) for name in _NEW]
    while hashed[-1] is None:
        hashed.pop()
    return values | {"digest": hashlib.blake2b(orjson.dumps(hashed), digest_size=16).digest()}


def _count(hours: Cells, row: dict[str, Any]) -> None:
    named = [row[name] or "" for name in _BUCKET[1:7]]
    bucket = (int(row["started_at"] // _HOUR_S) * _HOUR_S, *named, row["revision"] or 0, row["experiment"] or "", row["arm"] or "")
    _add(hours, bucket, [1, row["prompt_tokens"], row["completion_tokens"], 0, 0, row["cost_pusd"]])


def _add(cells: Cells, key: tuple[Any, ...], more: list[int]) -> None:
    cell = cells.setdefault(key, [0] * 6)
    for at, value in enumerate(more):
        cell[at] += value


def _write(bind: sa.Connection, hours: Cells) -> None:
    """All that follows from the buckets of one day."""
    days: Cells = {}
    totals: Cells = {}
    of_each: Cells = {}
    for bucket, cell in hours.items():
        day = bucket[0] // _DAY_S * _DAY_S
        _add(days, (day, *bucket[1:]), cell)
        part = dict(zip(_BUCKET, bucket, strict=True))
        for scope, group in _kinds():
            if ("team_id" in _SCOPES[scope] and not part["team_id"]) or (group == "arm" and not part["arm"]):
                continue
            kind, scope_name, name = f"{scope}/{group}", _joined(part, _SCOPES[scope]), _joined(part, _GROUPS[group])
            if group not in _MANY:
                _add(totals, (_HOUR_S, kind, scope_name, bucket[0], name), cell)
                _add(totals, (_DAY_S, kind, scope_name, day, name), cell)
            elif scope != "team":
                _add(of_each, (kind, scope_name, name, day, part["team_id"]), cell)
    _insert(bind, "usage_by_hour", _BUCKET, hours)
    _insert(bind, "usage_by_day", _BUCKET, days)
    _insert(bind, "usage_totals", ("step_s", "kind", "scope", "at", "name"), totals)
    _insert(bind, "usage_of_each", ("kind", "scope", "name", "at", "team_id"), of_each)


def _kinds() -> Iterator[tuple[str, str]]:
    for scope, columns in _SCOPES.items():
        yield from ((scope, group) for group in _GROUPS if not set(columns) & set(_GROUPS[group]))


def _joined(part: dict[str, Any], names: Iterable[str]) -> str:
    return "\x1f".join(f"{part[name]:012d}" if name == "revision" else part[name] for name in names)


def _insert(bind: sa.Connection, table: str, key: tuple[str, ...], cells: Cells) -> None:
    names = (*key, *_USED)
    rows = [dict(zip(names, (*cell_key, *cell[:5], *divmod(cell[5], _SPLIT)), strict=True)) for cell_key, cell in cells.items()]
    if rows:
        bind.execute(sa.insert(sa.table(table, *(sa.column(name) for name in names))), rows)
