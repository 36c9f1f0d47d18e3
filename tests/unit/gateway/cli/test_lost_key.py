"""A secret key that is lost is no dead end."""

from __future__ import annotations

import asyncio
import io
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from gateway.cli.context import context
from gateway.cli.home_lock import hold_home
from gateway.cli.revisions import apply_if_new, read_config
from gateway.settings import Settings, load_settings
from gateway.store.migrate import SCRIPTS, migrate
from gateway.store.secret_key import FILE_NAME, PREVIOUS_FILE_NAME, fingerprint

from .conftest import Gateway

MINE = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz"
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
    assert (forgotten["action"], forgotten["before"]) == ("forget", {"secrets": ["m/b"], "signing_keys": 1, "contents": 0})
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


def test_beside_a_running_server_nothing_is_forgotten(used: Gateway, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / FILE_NAME).unlink()
    with hold_home(home, home / "run"):
        typed = used("secrets", "forget", "--yes")
    assert typed.code == 1
    assert "stop it" in typed.err
    assert not (home / FILE_NAME).exists()
    assert [secret["name"] for secret in used("secrets", "list", "--json").json] == ["m/b"]
    assert used("secrets", "forget", "--yes").code == 0


def test_what_was_lost_is_restored_from_the_file(used: Gateway, tmp_path: Path) -> None:
    """`serve --config FILE` with the keys in FILE: its content is no news, but its keys are gone."""
    (tmp_path / "keyed.yaml").write_text(KEYED.replace("sk-upstream", "sk-changed"))
    applying = partial(_start_with, load_settings(), str(tmp_path / "keyed.yaml"))
    assert asyncio.run(applying()) == 2
    assert asyncio.run(applying()) is None
    (tmp_path / "home" / FILE_NAME).unlink()
    assert used("secrets", "forget", "--yes").code == 0
    live = used("revisions", "--json").json[0]["id"]
    assert asyncio.run(applying()) is None
    assert [secret["name"] for secret in used("secrets", "list", "--json").json] == ["m/b~2"], "the name that it has in the live revision"
    assert used("revisions", "--json").json[0]["id"] == live
    assert [finding for finding in used("doctor", "--json").json if finding["check"] == "secrets" and not finding["ok"]] == []


def test_of_another_revision_than_the_files_nothing_is_restored(used: Gateway, tmp_path: Path) -> None:
    """Its key of the same name may be another."""
    (tmp_path / "other.yaml").write_text(KEYED.replace("sk-upstream", "sk-another"))
    assert used("apply", "-f", "other.yaml").code == 0
    assert used("rollback").code == 0
    (tmp_path / "home" / FILE_NAME).unlink()
    assert used("secrets", "forget", "--yes").code == 0
    assert asyncio.run(_start_with(load_settings(), str(tmp_path / "other.yaml"))) is None
    assert used("secrets", "list", "--json").json == []


async def _start_with(settings: Settings, file: str) -> int | None:
    """The revision that a start with this file makes."""
    async with context(settings) as ctx:
        made = await apply_if_new(ctx, read_config(file, settings), "start")
        return None if made is None else made.id


def _older(home: Path, fingerprint_of: str) -> None:
    file, older = home / "gateway.sqlite3", home.parent / "older"
    shutil.copytree(SCRIPTS, older, ignore=lambda _, names: [name for name in names if name.startswith("r0") and name > "r0003_z"])
    asyncio.run(migrate(f"sqlite+aiosqlite:///{file}", older))
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("INSERT INTO meta (name, value) VALUES ('secret_key_fingerprint', ?)", (fingerprint_of,))


def test_an_older_database_is_judged_before_it_is_changed(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    _older(home, fingerprint(MINE))
    before = sorted(path.name for path in home.iterdir())
    monkeypatch.setenv("GATEWAY_SECRET_KEY", MINE)
    typed = gateway("secrets", "forget", "--yes")
    assert typed.code == 1
    assert "nothing is lost" in typed.err
    assert "--signing --at-once" in typed.err, "what to do where something does not open all the same"
    assert [name for name in sorted(path.name for path in home.iterdir()) if name != "run"] == before
    with closing(sqlite3.connect(home / "gateway.sqlite3")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == ("0003",)


def test_a_database_of_an_older_version_is_brought_up_to_date(gateway: Gateway, tmp_path: Path) -> None:
    """`gateway init` refuses to without the key: the two must not wait for each other."""
    _older(tmp_path / "home", "of one that is lost")
    typed = gateway("init")
    assert typed.code == 1
    assert "gateway secrets forget" in typed.err
    typed = gateway("secrets", "forget", "--yes")
    assert typed.code == 0, typed.err
    assert "a copy of the old one is" in typed.err
    assert gateway("init").code == 0
