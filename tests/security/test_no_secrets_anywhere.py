"""A real server is asked everything, with marked keys, passwords, tokens and prompts; then nothing that stays may hold one of them.

What stays: its logs, everything in its home, its database, its metrics, the audit log, the ledger, the arguments of its processes. Answers
are searched as they come (everything.py). A mark is found as it is, in JSON and URLs, in hex and in base64 (marks.py, with its own test).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.gateway_process import free_port, gateway
from tests.oidc_provider import CLIENT_ID, CLIENT_SECRET, openid_provider
from tests.security.everything import Drive, everything
from tests.security.marked_upstream import BEHAVIOURS, marked_upstream, routes
from tests.security.marks import Marks, shapes_in
from tests.upstream import Upstream

_DONE = {
    "POST a login": 200,
    "POST a wrong password": 401,
    "POST a refresh token used twice": 401,
    "GET coming back from the provider": 302,
    "GET coming back without having begun": 400,
    "POST a key": 201,
    "POST importing a key": 201,
    "POST a user": 201,
    "POST one's own password": 204,
    "POST a link": 201,
    "POST using a link": 204,
    "POST a chat with good": 200,
    "POST a chat with 401": 502,
    "POST a chat with html": 502,
    "POST a chat with silent": 504,
    "POST a chat over the limit": 429,
    "POST a chat of revoked": 401,
    "POST a chat of rotated": 200,
    "POST a chat of imported": 200,
    "POST an unknown model": 404,
    "POST no JSON": 400,
    "POST a wrong body": 400,
    "POST a body over the limit": 413,
    "POST a file": 200,
    "leaving a stream": 200,
    "PUT a secret": 200,
    "POST a revision": 201,
    "POST a wrong document": 400,
    "POST a rollback": 200,
}
_HELD = {
    "the log": b'"event":',
    "metrics": b"gateway_requests_total",
    "the database": b"dana@example.com",
    "audit export": b"dana@example.com",
    "ledger export": b'"model":"up/good"',
    "contents list --json": b'"model": "up/good"',  # what was said to it is in the database, encrypted
    "the arguments of its processes": b"serve",
}


@dataclass
class Searched:
    """What is left behind, by name; and what was done before."""

    drive: Drive
    upstream: Upstream
    left: dict[str, bytes]


@pytest.fixture
def searched(dialect: str, database_url: str, tmp_path: Path) -> Iterator[Searched]:
    """A gateway that was driven through everything and has ended."""
    marks = Marks()
    environment = {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_SECRET_KEY": marks.make("GATEWAY_SECRET_KEY", "aZ9-", "-Kq7Lm2Nx8Rv4Tw"),
        "GATEWAY_ADMIN_PASSWORD": marks.make("the admin's password", "Pw "),
        "GATEWAY_OIDC_CLIENT_ID": CLIENT_ID,
        "GATEWAY_OIDC_CLIENT_SECRET": marks.learn("client secret at the provider", CLIENT_SECRET),
        "GATEWAY_OIDC_DEFAULT_ROLE": "member",
        "GATEWAY_LOG_LEVEL": "debug",
        "GATEWAY_MAX_BODY_MB": "1",
        "UPSTREAM_KEY": marks.make("key of the backend", "up-"),
    }
    port = free_port()
    public = f"http://127.0.0.1:{port}"
    with marked_upstream(marks.make("answer")) as upstream, openid_provider(f"{public}/auth/oidc/callback") as provider:
        provider.put_user("dana", email="elsewhere@example.com", email_verified=True)
        config = "models:\n" + routes(upstream.url, "${UPSTREAM_KEY}")
        with gateway(tmp_path, config, start=False) as running:
            running.environment |= environment | {"GATEWAY_OIDC_ISSUER": provider.url, "GATEWAY_OIDC_PUBLIC_URL": public}
            running.port = port
            running.start()
            with httpx.Client(base_url=running.url, trust_env=False, timeout=20) as http:
                drive = Drive(running, marks, http)
                everything(drive, provider)
                left = _of_a_running_server(drive)
            running.stop()
            left |= _files(running.home) | {"the log": running.log_path.read_bytes()}
            left["the database"] = _dump(dialect, database_url)
            for name in ("audit export", "ledger export", "audit list --json", "contents list --json"):
                left[name] = running.cli(*name.split()).encode()
        yield Searched(drive, upstream, left)


def test_no_key_password_token_or_prompt_is_anywhere(searched: Searched) -> None:
    drive, left = searched.drive, searched.left
    _was_really_done(searched)
    findings = list(drive.findings)
    for where, data in left.items():
        # what a backend is sent is sealed in the database; everything else is not there at all
        findings += [f"{where}: {found}" for found in drive.marks.found_in(data)]
    for where in ("the log", "metrics", "the arguments of its processes", "audit export", "ledger export"):
        findings += [f"{where}: {found}" for found in shapes_in(left[where])]
    assert not findings, "\n".join(findings)


def _was_really_done(searched: Searched) -> None:
    """Nothing is found where nothing was done: everything must have been, and everything searched must hold what it holds."""
    drive, left, seen = searched.drive, searched.left, searched.upstream.seen
    did = {what: set(statuses) for what, statuses in drive.did.items()}
    for what, status in _DONE.items():
        assert status in did[what], (what, did[what])
    assert not [what for what, statuses in did.items() if 500 in statuses], did
    core = drive.marks.cores["key of the backend"]
    assert core in seen[0].headers["authorization"], "the backend gets its key"
    assert any(drive.marks.cores["prompt to good"].encode() in request.body for request in seen)
    assert len(drive.marks.cores) > 150
    for where, word in _HELD.items():
        assert word in left[where], where
    assert all(f"up/{model}".encode() in left["ledger export"] for model in BEHAVIOURS)


def _of_a_running_server(drive: Drive) -> dict[str, bytes]:
    _settled()
    left = {"metrics": drive.http.get("/metrics").content, "audit page": drive.call("GET", "/admin/audit", params={"limit": 500}).content}
    left["audit export by the API"] = drive.call("GET", "/admin/audit/export").content
    arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in drive.gateway.children("")]
    return left | {"the arguments of its processes": b"\n".join(arguments)} | _files(drive.gateway.home, "running: ")


def _settled() -> None:
    """The ledger and the last uses of keys are written a moment after the requests."""
    time.sleep(2.0)


def _files(home: Path, prefix: str = "") -> dict[str, bytes]:
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # a segment that was shipped meanwhile
                found[f"{prefix}{path.relative_to(home)}"] = path.read_bytes()
        found[f"{prefix}name of {path.relative_to(home)}"] = os.fsencode(path)
    return found


def _dump(dialect: str, url: str) -> bytes:
    if dialect == "sqlite":
        with closing(sqlite3.connect(url.partition("///")[2])) as connection:
            connection.text_factory = bytes
            return repr(list(_rows(connection))).encode() + Path(url.partition("///")[2]).read_bytes()
    return asyncio.run(_dump_postgres(url.replace("+asyncpg", "")))


def _rows(connection: sqlite3.Connection) -> Iterator[object]:
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        yield from connection.execute(f'SELECT * FROM "{name.decode()}"').fetchall()


async def _dump_postgres(url: str) -> bytes:
    connection = await asyncpg.connect(url)
    out = io.BytesIO()
    try:
        for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            await connection.copy_from_table(row["tablename"], output=out)  # bytes are written as hex
    finally:
        await connection.close()
    return out.getvalue()
