"""SQL from what strangers send, and searches that cost more than they should."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from auth.authenticator import Authenticator
from auth.credential import credential_of
from auth.errors import CredentialInvalid
from auth.keys import digest
from auth.ports import KeyRecord, UserRecord
from auth.principal import Role
from auth.tokens import AccessTokens
from tests.security.inside import Inside

ROOT = Path(__file__).parents[2]
HOSTILE = (b"' OR '1'='1", b"sk-gw-aaaaaaaaaaaa-' UNION SELECT 1 --", b"%", b"_" * 40, b"\x00\xff", b"eyJ' OR 1=1", b"a" * 30_000)
# Makers of SQL from text, by name, and those of SQLAlchemy that put a text into a statement as it is.
_MAKERS = frozenset({"text", "literal_column", "exec_driver_sql", "execute", "executescript", "prefix_with", "suffix_with"})


class Watchful:
    """Notes everything that it is asked."""

    away = behind = False

    def __init__(self) -> None:
        self.asked: list[object] = []

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        self.asked.append(digest)
        return None

    def key_refusal(self, digest: bytes) -> str:
        self.asked.append(digest)
        return "unknown"

    def user_by_id(self, user_id: str) -> UserRecord | None:
        self.asked.append(user_id)
        return None


@pytest.mark.parametrize("header", [b"authorization", b"x-api-key", b"api-key"])
def test_of_a_credential_only_its_digest_goes_any_further(header: bytes) -> None:
    store = Watchful()
    authenticator = Authenticator(store, AccessTokens(bytes(range(32))))
    for hostile in HOSTILE:
        value = b"Bearer " + hostile if header == b"authorization" else hostile
        with pytest.raises(CredentialInvalid) as refused:
            authenticator.authenticate(credential_of([(header, value)]), 1_800_000_000.0)
        assert hostile.decode("latin-1") not in f"{refused.value!r} {refused.value.reason}"
    sent = {digest(hostile.strip()) for hostile in HOSTILE}
    assert set(store.asked) <= sent
    assert store.asked


def statements(folder: Path) -> Iterator[tuple[str, ast.expr]]:
    """Every first argument of a call that makes SQL of text: (where, what)."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _MAKERS:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.args[0]


def _is_built(node: ast.expr) -> bool:
    """Is this text put together while the program runs?"""
    return any(_builds(part) for part in ast.walk(node))


def _builds(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        return any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(node))
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    # `.join` is a query's too: a text's stands behind the text itself
    return node.func.attr == "format" or (node.func.attr in ("join", "replace") and isinstance(node.func.value, ast.Constant))


# Names of tables and of our own making, settings of a connection: none of it comes from a request. Each is looked at when it is entered.
_LOOKED_AT = {
    "gateway/store/days.py": 2,  # a wait of ours in ms; one of two constants
    "gateway/store/engine.py": 3,  # PRAGMA busy_timeout, foreign_keys and synchronous: our own constants
}


def test_no_statement_is_put_together_from_text() -> None:
    built: dict[str, int] = {}
    for folder in ("gateway", "auth", "backends"):
        for where, node in statements(ROOT / folder):
            if _is_built(node):
                file = where.rpartition(":")[0]
                built[file] = built.get(file, 0) + 1
    assert built == _LOOKED_AT


async def test_signs_of_a_pattern_are_letters_in_a_search(own: Inside) -> None:
    """`%` and `_` find themselves, not everything: a pattern of a stranger's making is the database's work."""
    await own.person("per%cent", Role.MEMBER)
    await own.person("plain", Role.MEMBER)
    await own.key("per_cent")
    async with own.client(await own.log_in(own.admin)) as http:
        found = (await http.get("/admin/users", params={"search": "%"})).json()["data"]
        assert [user["email"] for user in found] == ["per%cent@example.com"]
        found = (await http.get("/admin/keys", params={"search": "_"})).json()["data"]
        assert [key["name"] for key in found] == ["per_cent"]


async def test_lists_are_bounded_whatever_is_asked(own: Inside) -> None:
    async with own.client(await own.log_in(own.admin)) as http:
        for path in ("/admin/users", "/admin/keys", "/admin/audit"):
            for query in ("limit=100000", "limit=0", "limit=-1"):
                assert (await http.get(f"{path}?{query}")).status_code == 400, (path, query)
        for path in ("/admin/users", "/admin/keys"):
            assert (await http.get(path, params={"search": "%_" * 5000})).status_code == 400, path


def test_a_statement_has_a_time_limit_on_postgresql() -> None:
    engine = (ROOT / "gateway/store/engine.py").read_text()
    limit = re.search(r"^_COMMAND_TIMEOUT_S = ([\d.]+)$", engine, re.MULTILINE)
    assert limit is not None
    assert 0 < float(limit[1]) <= 60
    assert '"command_timeout": _COMMAND_TIMEOUT_S' in engine
    assert "idle_in_transaction_session_timeout" in engine
