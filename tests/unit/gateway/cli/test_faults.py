"""What can go wrong is one plain sentence and an exit code; doctor finds it first."""

from __future__ import annotations

import http.server
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.entry import sentence
from tests import gateway_process

from .conftest import Gateway


def one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and len(text) > 20


@pytest.mark.parametrize("home", ["/dev/null/x", "/proc/nowhere"])
def test_a_home_that_cannot_be_written(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("GATEWAY_HOME", home)
    typed = gateway("init")
    assert (typed.code, typed.out) == (1, "")
    assert one_sentence(typed.err)
    assert "cannot be written" in typed.err


def test_before_init_every_command_says_what_to_do(gateway: Gateway) -> None:
    for arguments in (("keys", "list"), ("users", "list"), ("revisions",), ("usage",), ("ledger", "export"), ("secrets", "list")):
        typed = gateway(*arguments)
        assert (typed.code, typed.out) == (1, "")
        assert "gateway init" in typed.err


def test_a_database_newer_than_the_code(ready: Gateway, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "home" / "gateway.sqlite3") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    for arguments in (("keys", "list"), ("init",)):
        typed = ready(*arguments)
        assert typed.code == 1
        assert one_sentence(typed.err)
        assert "newer version" in typed.err


def test_a_file_that_is_no_database(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "gateway.sqlite3").write_bytes(b"this is not a database, whatever its name says" * 100)
    typed = gateway("keys", "list")
    assert typed.code == 1
    assert one_sentence(typed.err)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GATEWAY_DATABASE_URL", "mysql://x", "must begin with"),
        ("GATEWAY_DATABASE_URL", "postgresql://user:hidden@127.0.0.1:1/x", "does not answer"),
        ("GATEWAY_SECRET_KEY", "short", "too short"),
        ("PORT", "abc", "PORT"),
    ],
)
def test_settings_that_cannot_be_used(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)
    typed = gateway("init")
    assert (typed.code, typed.out) == (1, "")
    assert one_sentence(typed.err)
    assert says in typed.err
    assert "hidden" not in typed.err


def test_wrong_usage_is_two(gateway: Gateway) -> None:
    for arguments in (("nonsense",), ("keys", "nonsense"), ("check",), ("apply", "--no-such-option"), ("rollback", "one")):
        typed = gateway(*arguments)
        assert (typed.code, typed.out) == (2, "")


def test_help_is_the_result() -> None:
    from gateway.cli.entry import outcome

    assert outcome(["--help"]) == 0


def test_an_unknown_error_shows_no_details() -> None:
    assert "RuntimeError" in sentence(RuntimeError("sk-gw-secret"))
    assert "sk-gw-secret" not in sentence(RuntimeError("sk-gw-secret"))


class Health(http.server.BaseHTTPRequestHandler):
    """Answers like the gateway, or like something else."""

    ours = True

    def do_GET(self) -> None:
        self.send_response(200)
        if self.ours:
            self.send_header("x-request-id", "req-1")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture(params=[True, False])
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[int, bool]]:
    ours = bool(request.param)
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Handler", (Health,), {"ours": ours}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_port, ours
    server.shutdown()
    server.server_close()
    thread.join()


def found(typed: object) -> dict[str, bool]:
    return {finding["check"]: finding["ok"] for finding in typed.json}  # type: ignore[attr-defined]  # Typed


@pytest.fixture
def free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(gateway_process.free_port()))


def test_doctor_finds_nothing_wrong(ready: Gateway, free_port: None) -> None:
    typed = ready("doctor")
    assert typed.code == 0, typed.out
    assert "WRONG" not in typed.out


def test_doctor_says_what_to_do(ready: Gateway, free_port: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.yaml").write_text("models: [{id: m, backends: [{type: local, path: gone}]}]\n")
    ready("apply", "-f", "g.yaml")
    (tmp_path / "home").chmod(0o755)
    (tmp_path / "home" / "secret.key").chmod(0o644)
    typed = ready("doctor", "--json")
    assert typed.code == 1
    assert {check for check, ok in found(typed).items() if not ok} == {"home", "secret key", "signing keys", "local models"}
    assert all(finding["fix"] for finding in typed.json if not finding["ok"])
    assert "WRONG  home" in ready("doctor").out


def test_doctor_before_init(gateway: Gateway, free_port: None) -> None:
    typed = gateway("doctor", "--json")
    assert typed.code == 1
    assert {check for check, ok in found(typed).items() if not ok} == {"home", "secret key", "database"}


def test_doctor_knows_its_own_server(ready: Gateway, listener: tuple[int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    port, ours = listener
    monkeypatch.setenv("PORT", str(port))
    assert found(ready("doctor", "--json"))["port"] is ours


@pytest.mark.parametrize("command", ["rollback", "export"])
def test_a_revision_that_no_number_can_be(ready: Gateway, command: str) -> None:
    typed = ready(command, str(2**63))
    assert (typed.code, typed.out) == (2, "")
    assert "unexpectedly" not in typed.err


@pytest.mark.parametrize(
    "url", ["postgresql://u:hidden-pw@h:notaport/db", "sqlite:///%zz/../?#", "postgresql://u:hidden-pw@127.0.0.1:1/x?sslmode=odd"]
)
def test_a_database_url_that_cannot_be_used(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GATEWAY_DATABASE_URL", url)
    typed = gateway("keys", "list")
    assert (typed.code, typed.out) == (1, "")
    assert one_sentence(typed.err)
    assert "unexpectedly" not in typed.err
    assert "hidden-pw" not in typed.err
