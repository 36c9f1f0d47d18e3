"""The audit log becomes a chain of hashes that only grows: triggers refuse every other change of it.

The entries that are there are chained as they stand. See gateway.store.chain for what is hashed; it is repeated here, because this script
must go on doing the same whatever becomes of that module.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_PAGE = 1000
_SQLITE = (
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    # REPLACE would take an entry's place without asking the trigger above
    """CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
)
_POSTGRES = (
    """CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the audit log is append-only';
    END $$""",
    """CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()""",
)


def upgrade() -> None:
    with op.batch_alter_table("audit", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.add_column(sa.Column("hash", sa.LargeBinary(), nullable=True))
    _chain(op.get_bind())
    with op.batch_alter_table("audit", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.alter_column("hash", existing_type=sa.LargeBinary(), nullable=False)
    for columns in (["actor_user_id", "id"], ["action", "id"], ["at"]):
        op.create_index(op.f(f"ix_audit_{'_'.join(columns)}"), "audit", columns)
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRES:
        op.execute(statement)


def _chain(bind: sa.Connection) -> None:
    names = ("id", "at", "actor_user_id", "via", "address", "action", "entity", "entity_id", "before", "after", "hash")
    audit = sa.table("audit", *(sa.column(name) for name in names), schema=None)
    meta = sa.table("meta", sa.column("name"), sa.column("value"))
    written = sa.update(audit).where(audit.c.id == sa.bindparam("entry")).values(hash=sa.bindparam("digest", type_=sa.LargeBinary()))
    last_id, digest, count = 0, bytes(32), 0
    while rows := bind.execute(sa.select(*audit.c).where(audit.c.id > last_id).order_by(audit.c.id).limit(_PAGE)).mappings().all():
        values = []
        for row in rows:
            digest = hashlib.sha256(digest + _canonical(row)).digest()
            values.append({"entry": row["id"], "digest": digest})
        bind.execute(written, values)
        last_id, count = rows[-1]["id"], count + len(rows)
    head = json.dumps({"id": last_id, "hash": digest.hex(), "count": count})
    bind.execute(sa.insert(meta).values(name="audit_head", value=head))


def _canonical(row: Any) -> bytes:
    fields = {name: row[name] for name in ("id", "actor_user_id", "via", "address", "action", "entity", "entity_id")}
    shown = {name: None if row[name] is None else json.loads(row[name]) for name in ("before", "after")}
    at = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return json.dumps(fields | shown | {"at": at}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
