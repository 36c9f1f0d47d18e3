"""A revision that an older version accepted and this one refuses: what the commands make of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import Gateway

FILE = "models: [{id: m, backends: [{type: echo}, {type: custom, base_url: 'http://127.0.0.1:9/v1'}]}]\n"


@pytest.fixture
def unfit(ready: Gateway, tmp_path: Path) -> Gateway:
    """Revision 1 has a backend at 0.0.0.0, as older versions let it; it is live."""
    (tmp_path / "g.yaml").write_text(FILE)
    assert ready("apply", "-f", "g.yaml").code == 0
    with closing(sqlite3.connect(tmp_path / "home" / "gateway.sqlite3")) as database, database:
        (text,) = database.execute("SELECT document FROM revisions WHERE id = 1").fetchone()
        database.execute("UPDATE revisions SET document = ? WHERE id = 1", (text.replace("127.0.0.1", "0.0.0.0"),))
    return ready


def test_doctor_says_what_is_left_out(unfit: Gateway) -> None:
    wrong = [finding["message"] for finding in unfit("doctor", "--json").json if not finding["ok"] and finding["check"] == "revision"]
    assert len(wrong) == 1
    assert "backend custom-1 of model m is left out" in wrong[0]


def test_models_and_explanations_are_of_the_rest(unfit: Gateway) -> None:
    (model,) = unfit("models", "list", "--json").json
    assert [backend["id"] for backend in model["backends"]] == ["echo-1"]
    assert unfit("explain", "--model", "m").code == 0


def test_export_gives_it_whole_with_what_is_wrong_beside_it(unfit: Gateway, tmp_path: Path) -> None:
    typed = unfit("export")
    assert typed.code == 0
    assert "http://0.0.0.0:9/v1" in typed.out
    assert "Revision 1 would be refused today: models[0].backends[1].base_url: has an address" in typed.err
    (tmp_path / "again.yaml").write_text(typed.out)
    assert unfit("apply", "-f", "again.yaml").code == 1
    (tmp_path / "again.yaml").write_text(typed.out.replace("0.0.0.0", "127.0.0.1"))
    assert unfit("apply", "-f", "again.yaml").code == 0


def test_nobody_goes_back_to_it(unfit: Gateway, tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("models: [{id: m, backends: [{type: echo}]}]\n")
    assert unfit("apply", "-f", "g.yaml").code == 0
    typed = unfit("rollback")
    assert (typed.code, typed.out) == (1, "")
    assert "Revision 1 cannot go live again: models[0].backends[1].base_url: has an address" in typed.err
    assert json.loads(unfit("revisions", "--json").out)[0]["live"]
