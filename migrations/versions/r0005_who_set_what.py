"""Who set what: which key acted, who issued a password link, and what of a user or key an admin has set.

Nothing of that was kept until now. What bounds a user or a key therefore counts as set by an admin, unless a manager made the key: so a
manager comes to widen nothing by an upgrade, and an admin can set it anew. Links learn their issuer from the audit log;
what counts is whether the issuer's logins end after the upgrade.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_PAGE = 1000
_LIMITS = ("rpm", "tpm", "concurrency", "budget_pusd")


def upgrade() -> None:
    op.add_column("audit", sa.Column("actor_key_id", sa.Text(), nullable=True))
    op.create_index(op.f("ix_audit_actor_key_id_id"), "audit", ["actor_key_id", "id"])
    op.add_column("password_links", sa.Column("issued_by", sa.Text(), nullable=True))
    op.add_column("password_links", sa.Column("issued_with", sa.Text(), nullable=True))
    op.add_column("password_links", sa.Column("issued_epoch", sa.Integer(), nullable=True))
    for table in ("users", "api_keys"):
        op.add_column(table, sa.Column("held", sa.Text(), nullable=False, server_default="[]"))
    bind = op.get_bind()
    _hold(bind, "users", ("disabled_at",), _held_of_user)
    _hold(bind, "api_keys", ("models", "networks", "expires_at"), _held_of_key, unless=_of_managers(bind))
    _name_issuers(bind)


def _hold(bind: sa.Connection, name: str, more: tuple[str, ...], held_of: Any, unless: sa.Select[Any] | None = None) -> None:
    columns = ("id", *_LIMITS, *more)
    table = sa.table(name, *(sa.column(column) for column in (*columns, "held", "created_by")))
    change = sa.update(table).where(table.c.id == sa.bindparam("row")).values(held=sa.bindparam("names"))
    query = sa.select(*(table.c[column] for column in columns)).order_by(table.c.id).limit(_PAGE)
    if unless is not None:
        query = query.where(sa.or_(table.c.created_by.is_(None), table.c.created_by.not_in(unless)))
    last = ""
    while rows := bind.execute(query.where(table.c.id > last)).mappings().all():
        values = [{"row": row["id"], "names": json.dumps(sorted(held))} for row in rows if (held := held_of(row))]
        if values:
            bind.execute(change, values)
        last = rows[-1]["id"]


def _of_managers(bind: sa.Connection) -> sa.Select[Any]:
    users = sa.table("users", sa.column("id"), sa.column("role"))
    return sa.select(users.c.id).where(users.c.role == "manager")


def _limits(row: Any) -> list[str]:
    return [name.removesuffix("_pusd") for name in _LIMITS if row[name] is not None]


def _held_of_user(row: Any) -> list[str]:
    return _limits(row) + (["disabled"] if row["disabled_at"] is not None else [])


def _held_of_key(row: Any) -> list[str]:
    models = [] if "*" in json.loads(row["models"]) else ["models"]
    networks = ["networks"] if json.loads(row["networks"]) else []
    return models + networks + (["expires_at"] if row["expires_at"] is not None else []) + _limits(row)


def _name_issuers(bind: sa.Connection) -> None:
    audit = sa.table("audit", *(sa.column(name) for name in ("id", "action", "entity", "entity_id", "actor_user_id")))
    links = sa.table("password_links", *(sa.column(name) for name in ("user_id", "issued_by", "issued_epoch")))
    users = sa.table("users", sa.column("id"), sa.column("token_epoch"))
    issued = sa.select(audit.c.actor_user_id).where(audit.c.action == "password_link", audit.c.entity == "user")
    newest = issued.where(audit.c.entity_id == links.c.user_id).order_by(audit.c.id.desc()).limit(1).scalar_subquery()
    bind.execute(sa.update(links).values(issued_by=newest))
    epoch = sa.select(users.c.token_epoch).where(users.c.id == links.c.issued_by).scalar_subquery()
    bind.execute(sa.update(links).values(issued_epoch=epoch))  # null where the machine issued it
