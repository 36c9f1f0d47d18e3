"""The migration r0005: what can be said afterwards of who set what before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sqlalchemy import text

from gateway.store.engine import Database
from gateway.store.migrate import SCRIPTS, head, migrate


async def test_what_was_set_before_it_was_kept_who_set_it_counts_as_an_admins(empty_url: str, tmp_path: Path) -> None:
    """Of keys that a manager made, it is the manager's. A link learns its issuer from the audit log."""
    older = tmp_path / "older"
    shutil.copytree(SCRIPTS, older, ignore=shutil.ignore_patterns("__pycache__", "r0005*", "r0006*", "r0007*", "r0008*", "r0009*", "r001*"))
    await migrate(empty_url, older)
    db = Database(empty_url)
    people: list[dict[str, object]] = [
        {"id": "boss", "role": "manager", "rpm": None, "disabled_at": None},
        {"id": "some", "role": "member", "rpm": 5, "disabled_at": 3.0},
        {"id": "free", "role": "member", "rpm": None, "disabled_at": None},
    ]
    free = {"models": '["*"]', "networks": "[]", "expires_at": None, "budget_pusd": None, "created_by": None}
    issued: list[dict[str, object]] = [
        {"id": "k1", **free, "budget_pusd": 5, "created_by": "cli"},
        {"id": "k2", **free, "models": '["m"]', "networks": '["10.0.0.0/8"]', "expires_at": 9.0},
        {"id": "k3", **free, "models": '["m"]', "created_by": "boss"},
        {"id": "k4", **free, "created_by": "cli"},
    ]
    async with db.write() as conn:
        for person in people:
            await conn.execute(
                text("INSERT INTO users (id, email, role, token_epoch, created_at, rpm, disabled_at) "
                     "VALUES (:id, :id, :role, 4, 1.0, :rpm, :disabled_at)"), person)  # fmt: skip
            link = {"digest": str(person["id"]).encode(), "id": person["id"]}
            await conn.execute(text("INSERT INTO password_links VALUES (:digest, :id, 1.0, 2.0)"), link)
        for key in issued:
            await conn.execute(
                text("INSERT INTO api_keys (id, user_id, name, models, scopes, networks, expires_at, budget_pusd, created_by, created_at) "
                     "VALUES (:id, 'some', 'n', :models, '[]', :networks, :expires_at, :budget_pusd, :created_by, 1.0)"), key)  # fmt: skip
        for n, (who, of) in enumerate((("older", "some"), ("boss", "some"), (None, "free")), 1):
            entry = {"id": n, "who": who, "of": of, "hash": b"x"}
            await conn.execute(
                text("INSERT INTO audit (id, at, actor_user_id, via, action, entity, entity_id, hash) "
                     "VALUES (:id, 1.0, :who, 'api', 'password_link', 'user', :of, :hash)"), entry)  # fmt: skip
    await db.close()
    assert (await migrate(empty_url)).after == head()
    db = Database(empty_url)
    async with db.read() as conn:
        held = {row.id: json.loads(row.held) for row in (await conn.execute(text("SELECT id, held FROM users")))}
        held |= {row.id: json.loads(row.held) for row in (await conn.execute(text("SELECT id, held FROM api_keys")))}
        rows = await conn.execute(text("SELECT user_id, issued_by, issued_epoch FROM password_links"))
        links = {row.user_id: (row.issued_by, row.issued_epoch) for row in rows}
    await db.close()
    assert held == {
        "boss": [], "some": ["disabled", "rpm"], "free": [],
        "k1": ["budget"], "k2": ["expires_at", "models", "networks"], "k3": [], "k4": [],
    }  # fmt: skip
    assert links == {"boss": (None, None), "some": ("boss", 4), "free": (None, None)}
