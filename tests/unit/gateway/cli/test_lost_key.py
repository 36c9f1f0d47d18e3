"""A secret key that is lost is no dead end."""

from __future__ import annotations

import asyncio
import io
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.store.migrate import SCRIPTS, migrate
from gateway.store.secret_key import FILE_NAME, PREVIOUS_FILE_NAME

from .conftest import Gateway

KEYED = "models: [{id: m, backends: [{type: custom, id: b, base_url: 'http://127.0.0.1:9/v1', api_key: sk-upstream}]}]\n"


@pytest.fixture
def used(ready: Gateway, tmp_path: Path) -> Gateway:
    """With an API key and a stored upstream key."""
    (tmp_path / "keyed.yaml").write_text(KEYED)
    assert ready("apply", "-f", "keyed.yaml").code == 0
    assert ready("keys", "create", "--name", "k").code == 0
    return ready


def test_there_is_a_way_out(used: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    keys, people = used("keys", "list", "--json").json, used("users", "list", "--json").json
    old = (home / FILE_NAME).read_text()
    (home / FILE_NAME).unlink()
    typed = used("secrets", "forget", "--yes")
    assert typed.code == 0, typed.err
    assert "forgotten: m/b" in typed.out
    assert "must be entered again" in typed.err
    assert (home / FILE_NAME).read_text() != old
    assert used("init").code == 0
    assert (used("keys", "list", "--json").json, used("users", "list", "--json").json) == (keys, people)
    assert used("secrets", "list", "--json").json == []
    wrong = {finding["check"]: finding for finding in used("doctor", "--json").json if not finding["ok"]}
    assert "gateway secrets set m/b" in wrong["secrets"]["fix"]
    assert "signing keys" not in wrong
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-upstream\n"))
    assert used("secrets", "set", "m/b").code == 0
    (made, forgotten) = used("audit", "list", "--json", "--limit", "3").json[1:]
    assert (forgotten["action"], forgotten["before"]) == ("forget", {"secrets": ["m/b"], "signing_keys": 1})
    assert (made["action"], made["entity"]) == ("create", "signing_key")


def test_it_asks_and_without_a_terminal_refuses(used: Gateway, tmp_path: Path) -> None:
    (tmp_path / "home" / FILE_NAME).unlink()
    typed = used("secrets", "forget")
    assert typed.code == 1
    assert "Nothing was changed" in typed.err
    assert not (tmp_path / "home" / FILE_NAME).exists()


@pytest.mark.parametrize("name", [FILE_NAME, PREVIOUS_FILE_NAME])
def test_where_the_key_is_still_there_nothing_is_forgotten(used: Gateway, tmp_path: Path, name: str) -> None:
    (tmp_path / "home" / FILE_NAME).rename(tmp_path / "home" / name)
    typed = used("secrets", "forget", "--yes")
    assert typed.code == 1
    assert "nothing is lost" in typed.err
    assert [secret["name"] for secret in used("secrets", "list", "--json").json] == ["m/b"]


def test_a_database_of_an_older_version_is_brought_up_to_date(gateway: Gateway, tmp_path: Path) -> None:
    """`gateway init` refuses to without the key: the two must not wait for each other."""
    file, older = tmp_path / "home" / "gateway.sqlite3", tmp_path / "older"
    shutil.copytree(SCRIPTS, older, ignore=lambda _, names: [name for name in names if name.startswith("r0") and name > "r0003_z"])
    asyncio.run(migrate(f"sqlite+aiosqlite:///{file}", older))
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("INSERT INTO meta (name, value) VALUES ('secret_key_fingerprint', 'of one that is lost')")
    typed = gateway("init")
    assert typed.code == 1
    assert "gateway secrets forget" in typed.err
    typed = gateway("secrets", "forget", "--yes")
    assert typed.code == 0, typed.err
    assert "a copy of the old one is" in typed.err
    assert gateway("init").code == 0
