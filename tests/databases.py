"""Real databases for tests: SQLite files and a real PostgreSQL.

PostgreSQL is, in this order: the server at GATEWAY_TEST_POSTGRES_URL; one started from the system's binaries; one from the `pgserver`
wheel.
Without any the tests that need it are skipped, or fail where CI=true.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway.store.engine import Database
from gateway.store.generation import Generation
from gateway.store.migrate import migrate
from tests.gateway_process import free_port

_SETTINGS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "full_page_writes=off", "shared_buffers=32MB")


class Postgres:
    """A running server. `url` is that of its maintenance database, for asyncpg."""

    def __init__(self, url: str) -> None:
        address, mark, options = url.partition("?")
        self._base, _, self._maintenance = address.rpartition("/")
        self._options = mark + options
        self._template = ""

    def url(self, name: str = "") -> str:
        return f"{self._base}/{name or self._maintenance}{self._options}"

    def sqlalchemy_url(self, name: str) -> str:
        return self.url(name).replace("postgresql://", "postgresql+asyncpg://", 1)

    async def create(self, template: str = "template0") -> str:
        """A new database; returns its name."""
        name = f"gateway_test_{secrets.token_hex(6)}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    async def create_migrated(self) -> str:
        if not self._template:
            template = await self.create()
            await migrate(self.sqlalchemy_url(template))
            self._template = template
        return await self.create(self._template)

    async def drop(self, name: str) -> None:
        await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    given = os.environ.get("GATEWAY_TEST_POSTGRES_URL", "")
    if given:
        yield Postgres(given.replace("postgresql+asyncpg://", "postgresql://", 1))
        return
    if _system_binaries() is not None:
        with system_postgres() as server:
            yield server
        return
    yield from _wheel_server()


@contextmanager
def system_postgres(*settings: str) -> Iterator[Postgres]:
    """A server started from the system's binaries, with these settings too. Raises `FileNotFoundError` where there are none."""
    binaries = _system_binaries()
    if binaries is None:
        raise FileNotFoundError("there are no PostgreSQL binaries on this system")
    with _system_server(binaries, settings) as url:
        yield Postgres(url)


@pytest.fixture(params=["sqlite", "postgres"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Tests that use this, directly or through the fixtures below, run once on each database."""
    return str(request.param)


@pytest.fixture
async def empty_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without any table, for this test alone."""
    if dialect == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/home/gateway.sqlite3"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = await server.create()
    yield server.sqlalchemy_url(name)
    await server.drop(name)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the present schema and no rows, to be copied for each test: to make it takes a tenth of a second of CPU."""
    path = tmp_path_factory.mktemp("schema") / "empty.sqlite3"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture
async def database_url(dialect: str, request: pytest.FixtureRequest, migrated: Path, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database with the present schema and no rows, for this test alone."""
    if dialect == "sqlite":
        file = tmp_path / "home" / "gateway.sqlite3"
        file.parent.mkdir(mode=0o700)
        shutil.copy(migrated, file)
        yield f"sqlite+aiosqlite:///{file}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = await server.create_migrated()
    yield server.sqlalchemy_url(name)
    await server.drop(name)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
def generation(tmp_path: Path) -> Iterator[Generation]:
    counters = Generation(tmp_path / "run" / "generation")
    yield counters
    counters.close()


def _absent(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"PostgreSQL is needed here: {reason}")
    pytest.skip(reason)


def _system_binaries() -> Path | None:
    candidates = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True)
    return next((path for path in candidates if (path / "initdb").exists() and (path / "pg_ctl").exists()), None)


@contextmanager
def _system_server(binaries: Path, settings: Sequence[str]) -> Iterator[str]:
    """PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`."""
    user = _unprivileged() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
    data, port = folder / "data", free_port()
    if user is not None:
        shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(binaries / program), "-D", str(data), *arguments], check=True, user=user, cwd=folder, timeout=120,
            env={"PATH": os.defpath, "LC_ALL": "C"}, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    options = " ".join(f"-c '{setting}'" for setting in (f"port={port}", *_SETTINGS, *settings))
    try:
        call("initdb", "-U", "gateway", "-E", "UTF8", "--auth=trust", "--no-sync")
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://gateway@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wheel_server() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
    try:
        with warnings.catch_warnings(action="ignore"):  # it warns of an unset XDG_RUNTIME_DIR
            import pgserver

            server = pgserver.get_server(folder, cleanup_mode="stop")
    except ImportError:
        folder.rmdir()
        _absent("no GATEWAY_TEST_POSTGRES_URL, no postgres binaries, no pgserver wheel")
        return
    try:
        yield Postgres(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)
