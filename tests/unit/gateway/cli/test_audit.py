"""`gateway audit`."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import Gateway


@pytest.fixture
def busy(ready: Gateway) -> Gateway:
    """After a few changes."""
    assert ready("users", "create", "--email", "dana@example.com", "--role", "member").code == 0
    assert ready("keys", "create", "--name", "first key", "--owner", "dana@example.com").code == 0
    assert ready("users", "set-role", "dana@example.com", "--role", "viewer").code == 0
    return ready


def _behind_its_back(tmp_path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(tmp_path / "home" / "gateway.sqlite3")) as raw:
        for name in ("audit_no_update", "audit_no_delete", "audit_no_replace"):
            raw.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            raw.execute(statement)
        raw.commit()


def test_listing(busy: Gateway) -> None:
    rows = busy("audit", "list").out
    assert "role member -> viewer" in rows
    assert "first key" in rows
    newest = busy("audit", "list", "--limit", "1", "--json").json[0]
    assert (newest["action"], newest["entity"], newest["after"]["role"]) == ("set_role", "user", "viewer")
    assert [e["action"] for e in busy("audit", "list", "--search", "DANA@", "--entity", "user", "--json").json] == ["set_role", "create"]
    assert busy("audit", "list", "--until", "1h", "--json").json == []
    assert busy("audit", "list", "--search", "ab").code == 2
    assert busy("audit", "list", "--since", "soon").code == 2


def test_the_key_that_acted_is_shown(busy: Gateway, tmp_path: Path) -> None:
    _behind_its_back(tmp_path, "UPDATE audit SET actor_key_id = 'k3v9x0q2m7ab' WHERE id = (SELECT max(id) FROM audit)")
    assert "(key k3v9x0q2m7ab)" in busy("audit", "list").out
    assert [entry["actor_key_id"] for entry in busy("audit", "list", "--actor", "k3v9x0q2m7ab", "--json").json] == ["k3v9x0q2m7ab"]
    last, before = busy("audit", "export").out.splitlines()[:-3:-1]
    assert json.loads(last)["actor_key_id"] == "k3v9x0q2m7ab"
    assert "actor_key_id" not in json.loads(before)
    assert busy("audit", "verify").code == 1, "nobody had written it"


def test_a_whole_log(busy: Gateway, tmp_path: Path) -> None:
    whole = busy("audit", "verify")
    assert whole.code == 0, whole
    anchor = whole.out.strip().rpartition(" ")[2]
    assert busy("audit", "verify", "--anchor", anchor).code == 0
    number, _, digest = anchor.partition(":")
    assert busy("audit", "verify", "--anchor", f"{number}:{'0' * 64}").code == 1
    assert busy("audit", "verify", "--anchor", "7:abc").code == 2
    verdict = busy("audit", "verify", "--json").json
    assert (verdict["valid"], verdict["last_id"], verdict["last_hash"]) == (True, int(number), digest)


@pytest.mark.parametrize(
    ("statement", "named"),
    [("DELETE FROM audit WHERE id = 2", "Entry 2 is missing"), ("UPDATE audit SET via = 'api' WHERE id = 3", "Entry 3 was altered")],
)
def test_a_removed_or_altered_row_is_found(busy: Gateway, tmp_path: Path, statement: str, named: str) -> None:
    _behind_its_back(tmp_path, statement)
    found = busy("audit", "verify")
    assert found.code == 1
    assert named in found.out
    assert busy("audit", "verify", "--json").code == 1


def test_an_export_can_be_checked_without_the_database(busy: Gateway, tmp_path: Path) -> None:
    exported = busy("audit", "export").out
    lines = exported.splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(1, len(lines) + 1))
    copy = tmp_path / "audit.jsonl"
    copy.write_text(exported)
    assert busy("audit", "verify", "-f", str(copy)).code == 0
    copy.write_text("\n".join(lines[:1] + lines[2:]))
    cut = busy("audit", "verify", "-f", str(copy))
    assert (cut.code, "Entry 2 is missing" in cut.out) == (1, True)
    copy.write_text("nothing of the kind")
    assert "Line 1 is not one of an export" in busy("audit", "verify", "-f", str(copy)).err
    # the copy's last line is an anchor for the database
    last = json.loads(lines[-1])
    _behind_its_back(tmp_path, "DELETE FROM audit", """UPDATE meta SET value = '{"id":0,"hash":"","count":0}' WHERE name = 'audit_head'""")
    assert busy("audit", "verify").code == 1, "a head without a hash is no head"
    assert busy("audit", "verify", "--anchor", f"{last['id']}:{last['hash']}").code == 1
    assert [json.loads(line)["id"] for line in busy("audit", "export", "--since", "1h").out.splitlines()] == []
