"""No command opens or seals with a key that is not this database's, and none makes one where one is known."""

from __future__ import annotations

import io
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.store.secret_key import FILE_NAME, PREVIOUS_FILE_NAME

from .conftest import Gateway, Typed

OTHER = "Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0SaQeUoIyTr"
KEYED = "models: [{id: m, backends: [{type: custom, base_url: 'http://127.0.0.1:9/v1', api_key: sk-upstream}]}]\n"
SEALING = [("secrets", "set", "name"), ("secrets", "rotate"), ("secrets", "rotate", "--signing"), ("apply", "-f", "keyed.yaml"), ("init",)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "keyed.yaml").write_text(KEYED)
    monkeypatch.setattr("sys.stdin", io.StringIO("value\n"))
    return tmp_path / "home"


def rows(home: Path) -> list[str]:
    with closing(sqlite3.connect(home / "gateway.sqlite3")) as database:
        return list(database.iterdump())


def refused(typed: Typed, *words: str) -> None:
    assert (typed.code, typed.out) == (1, ""), typed
    assert typed.err.count("\n") == 1
    for word in (*words, "gateway secrets forget"):
        assert word in typed.err


@pytest.mark.parametrize("command", SEALING, ids=" ".join)
def test_with_another_key(ready: Gateway, home: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setenv("GATEWAY_SECRET_KEY", OTHER)
    before = rows(home)
    refused(ready(*command), "GATEWAY_SECRET_KEY is not the one that this database was set up with")
    assert rows(home) == before


@pytest.mark.parametrize("command", SEALING, ids=" ".join)
def test_without_the_file(ready: Gateway, home: Path, command: tuple[str, ...]) -> None:
    (home / FILE_NAME).unlink()
    before = rows(home)
    refused(ready(*command), f"{home / FILE_NAME} is missing", "put the file back from your copy")
    assert rows(home) == before
    assert not (home / FILE_NAME).exists()


def test_doctor_finds_both(ready: Gateway, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> dict[str, str]:
        return {finding["check"]: finding["message"] for finding in ready("doctor", "--json").json if not finding["ok"]}

    monkeypatch.setenv("GATEWAY_SECRET_KEY", OTHER)
    assert "is not the one that this database" in wrong()["signing keys"]
    monkeypatch.delenv("GATEWAY_SECRET_KEY")
    (home / FILE_NAME).unlink()
    assert "is missing" in wrong()["signing keys"]
    assert not (home / FILE_NAME).exists()


def test_a_key_that_succeeds_the_present_one_is_made_by_a_start_alone(ready: Gateway, home: Path) -> None:
    (home / FILE_NAME).rename(home / PREVIOUS_FILE_NAME)
    refused(ready("secrets", "rotate"), "is missing")
    assert ready("init").code == 0
    assert (home / FILE_NAME).read_text() != (home / PREVIOUS_FILE_NAME).read_text()
    assert ready("secrets", "rotate").code == 0
    (home / PREVIOUS_FILE_NAME).unlink()
    assert ready("init").code == 0


def test_the_key_is_compared_before_the_database_is_changed(ready: Gateway, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older database and the wrong key: it stays of the older version, and no copy is made."""
    with closing(sqlite3.connect(home / "gateway.sqlite3")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0003'")
    before = rows(home), sorted(path.name for path in home.iterdir())
    monkeypatch.setenv("GATEWAY_SECRET_KEY", OTHER)
    refused(ready("init"), "is not the one")
    assert (rows(home), sorted(path.name for path in home.iterdir())) == before


def test_a_new_home_for_an_old_database_gets_no_key_of_its_own(ready: Gateway, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = home.parent / "second"
    second.mkdir()
    shutil.copy(home / "gateway.sqlite3", second)
    monkeypatch.setenv("GATEWAY_HOME", str(second))
    refused(ready("init"), "is missing")
    assert not (second / FILE_NAME).exists()
