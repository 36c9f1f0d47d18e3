"""`gateway prices`: listed, taken out as CSV, brought in again."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Gateway

FIELDS = ("model", "backend", "from", "input", "output", "cached", "in_force")
CONFIG = """
models:
  - id: chat
    prices: {input: 0.15, output: "0.60", cached: "0.075"}
    backends:
      - {type: echo}
      - {type: echo, id: dear, prices: [{from: 2099-01-01T00:00:00Z, input: 3, output: 4}]}
  - {id: plain, backends: [{type: echo}]}
"""


@pytest.fixture
def priced(ready: Gateway, tmp_path: Path) -> Gateway:
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    assert ready("apply", "-f", "gateway.yaml").code == 0
    return ready


def live(gateway: Gateway) -> int:
    (found,) = [one["id"] for one in gateway("revisions", "--json").json if one["live"]]
    return int(found)


def test_listed_in_three_forms(priced: Gateway) -> None:
    assert priced("prices", "list", "--csv").out == (
        "model,backend,from,input,output,cached\nchat,,,0.15,0.6,0.075\nchat,dear,2099-01-01T00:00:00Z,3,4,\n"
    )
    assert priced("prices", "list", "--json").json == [
        dict(zip(FIELDS, ("chat", None, None, "0.15", "0.6", "0.075", True), strict=True)),
        dict(zip(FIELDS, ("chat", "dear", "2099-01-01T00:00:00Z", "3", "4", None, False), strict=True)),
    ]
    lines = priced("prices", "list").out.splitlines()
    assert lines[0].split() == ["MODEL", "BACKEND", "FROM", "INPUT", "OUTPUT", "CACHED", "STATE"]
    assert (lines[1].split()[-1], lines[2].split()[-1]) == ("counts", "planned")


def test_what_was_taken_out_changes_nothing_when_brought_in(priced: Gateway, tmp_path: Path) -> None:
    before = live(priced)
    (tmp_path / "prices.csv").write_text(priced("prices", "list", "--csv").out)
    done = priced("prices", "import", "prices.csv")
    assert (done.code, done.out) == (0, "")
    assert "Nothing to change: all 2" in done.err
    assert live(priced) == before


def test_one_import_is_one_revision_with_its_audit_entry(priced: Gateway, tmp_path: Path) -> None:
    before = live(priced)
    (tmp_path / "new.csv").write_text("model,input,output\nchat,1,2\nplain,3,4\n")
    tried = priced("prices", "import", "new.csv", "--from", "2098-01-01T00:00:00+01:00", "--dry-run")
    assert tried.code == 0
    assert "dry run" in tried.err
    assert live(priced) == before
    assert priced("prices", "import", "new.csv", "--from", "2098-01-01T00:00:00+01:00").code == 0
    assert live(priced) == before + 1
    (newest, *_) = priced("revisions", "--json").json
    assert (newest["note"], newest["author"]) == ("2 prices of 2 models imported", "cli")
    entry = next(one for one in priced("audit", "list", "--json").json if one["entity"] == "revision")
    assert (entry["action"], entry["via"], entry["after"]["note"]) == ("apply", "cli", newest["note"])
    assert priced("prices", "list", "--csv").out.splitlines()[1:] == [
        "chat,,,0.15,0.6,0.075", "chat,,2097-12-31T23:00:00Z,1,2,", "chat,dear,2099-01-01T00:00:00Z,3,4,",
        "plain,,2097-12-31T23:00:00Z,3,4,",
    ]  # fmt: skip
    assert priced("rollback").code == 0
    assert live(priced) == before


def test_faults_have_their_lines_and_nothing_is_applied(priced: Gateway, tmp_path: Path) -> None:
    before = live(priced)
    (tmp_path / "bad.csv").write_text("model,input,output\nchat,1,2\nchatt,1,2\nplain,1,x\n")
    done = priced("prices", "import", "bad.csv")
    assert (done.code, done.out) == (1, "")
    assert done.err == "bad.csv:4: output: must be a plain decimal such as 0.15 (USD per million tokens)\n"
    (tmp_path / "bad.csv").write_text("model,input,output\nchat,1,2\nchatt,1,2\n")
    assert priced("prices", "import", "bad.csv").err == 'bad.csv:3: model: there is no model "chatt" (did you mean "chat"?)\n'
    assert live(priced) == before


def test_what_cannot_be_read(priced: Gateway, tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"model,input,output\nch\xe4t,1,2\n")
    assert priced("prices", "import", "latin.csv").err == "latin.csv:2: not UTF-8 text\n"
    assert "cannot be read" in priced("prices", "import", "none.csv").err
    assert priced("prices", "import", "latin.csv", "--from", "soon").code == 2


def test_what_was_brought_in_can_be_exported_and_checked(priced: Gateway, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("model,backend,from,input,output\nchat,,,1,2\nchat,echo-1,2098-01-01T00:00:00Z,5,6\n")
    assert priced("prices", "import", "new.csv", "--note", "list of May").code == 0
    assert priced("revisions", "--json").json[0]["note"] == "list of May"
    (tmp_path / "exported.yaml").write_text(priced("export").out)
    assert priced("check", "-f", "exported.yaml").code == 0
    table = priced("prices", "list", "--csv").out
    assert priced("apply", "-f", "exported.yaml").code == 0
    assert priced("prices", "list", "--csv").out == table
