"""`gateway doctor`: what is wrong with this installation, in plain words, each with what to do. It changes nothing."""

from __future__ import annotations

import asyncio
import http.client
import os
import resource
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from gateway import native, own_client
from gateway.cli import run_folder
from gateway.cli.context import require_current
from gateway.cli.finding import Finding
from gateway.cli.options import Json
from gateway.cli.output import show, show_json
from gateway.cli.tls import ServerTls, check_upstream_ca
from gateway.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from gateway.store.engine import Database

_MIN_FREE_BYTES = 500_000_000
_MIN_DESCRIPTORS = 4096
_PROBE_S = 3.0
_WAITING_S = 60.0  # the ledger is shipped every second: what waits longer than this waits for something


def doctor(as_json: Json = False) -> None:
    """Look for what is wrong with this installation. Exit code 1 if something is."""
    findings = list(_examine())
    if as_json:
        show_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            show(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.check}: {finding.message}")
            if finding.fix:
                show(f"       to do: {finding.fix}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _examine() -> Iterator[Finding]:
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("settings", False, str(error), "Correct it in the environment or in .env.")
        return
    yield Finding("settings", True, "can be read")
    checks: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
        ("home", _home),
        ("run folder", lambda settings: run_folder.look(settings.home, settings.run_dir)),
        ("secret key", _secret_key),
        ("database", _store),
        ("redis", _redis),
        ("tls", _tls),
        ("port", _port),
        ("disk", _disk),
        ("ledger", _ledger),
        ("content log", _content_log),
        ("descriptors", _descriptors),
        ("data plane", _data_plane),
    )
    for name, look in checks:
        try:
            yield from look(settings)
        except Exception as error:  # a check that fails is a finding, and the others still matter
            from gateway.cli.entry import sentence

            yield Finding(name, False, sentence(error), "Correct that, then look again.")


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home
    if not home.is_dir():
        yield Finding("home", False, f"{home} does not exist", "Run `gateway init`.")
    elif not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("home", False, f"{home} cannot be written", "Give the user that runs the gateway the right to write there.")
    elif home.stat().st_mode & 0o077:
        yield Finding("home", False, f"other users of this machine may enter {home}", f"Run `chmod 700 {home}`.")
    else:
        yield Finding("home", True, f"{home} is there, for its owner alone")


def _secret_key(settings: Settings) -> Iterator[Finding]:
    from gateway.store.secret_key import FILE_NAME, load_secret_keys

    given = settings.secret_key.get_secret_value() or settings.secret_key_file
    if not given and not (settings.home / FILE_NAME).exists():
        yield Finding("secret key", False, "there is none", "Run `gateway init`, or set GATEWAY_SECRET_KEY.")
        return
    load_secret_keys(*settings.secret_key_sources())
    yield Finding("secret key", True, "is strong and private")


def _store(settings: Settings) -> Iterator[Finding]:
    yield from asyncio.run(_look_into_store(settings))


async def _look_into_store(settings: Settings) -> list[Finding]:
    from gateway.store.engine import Database

    await require_current(settings)
    db = Database(settings.database)
    try:
        found = [Finding("database", True, "answers and is up to date"), *await _admin(db), *await _signing(db, settings)]
        return [*found, *await _audit(db), *await _routes(db, settings), *await _contents(db, settings)]
    finally:
        await db.close()


async def _admin(db: Database) -> list[Finding]:
    from gateway.store import users

    async with db.read() as conn:
        first = await users.first_admin(conn)
    if first is None:
        return [Finding("admin", False, "there is no enabled admin", "Run `gateway init`.")]
    return [Finding("admin", True, f"{first.email} is one")]


async def _audit(db: Database) -> list[Finding]:
    """Only whether it can go on: to read all of it is for `gateway audit verify`."""
    from gateway.store.chain import read_head
    from gateway.store.errors import AuditHeadMissing

    async with db.read() as conn:
        head = await read_head(conn)
    if head is None:
        return [Finding("audit", False, str(AuditHeadMissing()), "Restore a copy of the database: until then nothing can be changed.")]
    return [Finding("audit", True, f"the log goes on after entry {head.id}")]


async def _signing(db: Database, settings: Settings) -> list[Finding]:
    from gateway.store import meta, signing
    from gateway.store.errors import SecretUnreadable, StoreFault
    from gateway.store.own_key import check_keys
    from gateway.store.secrets import SecretBox

    try:
        keys = await check_keys(db, settings.secret_key_sources())
        async with db.read() as conn:
            known = await signing.read_all(conn, SecretBox.of(keys), time.time())
            replacing = await meta.secret_key_is_previous(conn, keys)
    except StoreFault as fault:
        to_do = "Set the GATEWAY_SECRET_KEY that it was stored with, or put that into GATEWAY_SECRET_KEY_PREVIOUS."
        if isinstance(fault, SecretUnreadable):
            to_do += " Where nobody has that: `gateway secrets rotate --signing --at-once`."
        return [Finding("signing keys", False, str(fault), to_do)]
    if not known:
        return [Finding("signing keys", True, "there is none yet; `gateway serve` makes the first")]
    found = [Finding("signing keys", True, f"login tokens are signed with {known[-1].algorithm}")]
    if replacing:
        found.append(Finding("secret key", True, "is being replaced: `gateway secrets rotate` once every server has the new one"))
    return found


async def _routes(db: Database, settings: Settings) -> list[Finding]:
    from gateway.cli.folders import folder_faults
    from gateway.routing.document import secret_names
    from gateway.routing.stored import read_stored
    from gateway.store import revisions
    from gateway.store import secrets as stored

    async with db.read() as conn:
        live = await revisions.live_revision(conn)
        names = {info.name for info in await stored.names(conn)}
    if live is None:
        return [Finding("revision", True, "there is none yet; `gateway serve` writes the first")]
    read = read_stored(live.document)
    document = read.document
    found = [Finding("revision", True, f"revision {live.id} is live, with {len(document.models)} models")]
    found += [Finding("revision", False, problem, "Apply a corrected file; the rest goes on serving.") for problem in read.problems]
    found += [
        Finding("secrets", False, f"the live revision needs the secret {name}", f"Run `gateway secrets set {name}`.")
        for name in sorted(secret_names(document) - names)
    ]
    found += await _sealed(db, settings) if names else []
    faults = list(folder_faults(document, settings))
    found += [Finding("local models", False, fault.message, "Correct the folder; the other models go on serving.") for fault in faults]
    return found if faults else [*found, Finding("local models", True, "every folder can be loaded, as far as the disk tells")]


async def _sealed(db: Database, settings: Settings) -> list[Finding]:
    from gateway.store import secrets as stored
    from gateway.store.errors import StoreFault
    from gateway.store.own_key import check_keys

    try:
        box = stored.SecretBox.of(await check_keys(db, settings.secret_key_sources()))
        async with db.read() as conn:
            await stored.read_all(conn, box)
    except StoreFault as fault:
        return [Finding("secrets", False, str(fault), "Set the GATEWAY_SECRET_KEY that they were stored with, or store them anew.")]
    return [Finding("secrets", True, "every stored secret can be opened")]


async def _contents(db: Database, settings: Settings) -> list[Finding]:
    """Can what was logged be read? (Only counted: to open it is for `gateway contents show`.)"""
    from gateway.store import contents
    from gateway.store.errors import StoreFault
    from gateway.store.own_key import check_keys
    from gateway.store.secret_key import fingerprint

    try:
        keys = await check_keys(db, settings.secret_key_sources())
    except StoreFault:
        return []  # said of the signing keys
    async with db.read() as conn:
        total, others = await contents.count(conn), await contents.count_sealed_otherwise(conn, fingerprint(keys.current))
    if others and not keys.previous:
        fix = "Put that key into GATEWAY_SECRET_KEY_PREVIOUS and run `gateway secrets rotate`; nobody can read them meanwhile."
        return [Finding("content log", False, f"{others} of {total} logged requests are encrypted with another key", fix)]
    if others:
        return [Finding("content log", True, f"{others} of {total} logged requests wait for `gateway secrets rotate`")]
    return [Finding("content log", True, f"{total} requests are logged, and kept for {settings.content_kept_days} days")] if total else []


def _redis(settings: Settings) -> Iterator[Finding]:
    if not settings.redis_url:
        return
    from gateway.limits.redis import LinkLost, inspect  # it may not be installed

    try:
        version, forgets = asyncio.run(inspect(settings.redis_url))
    except (LinkLost, ValueError) as error:
        meanwhile = "callers with limits are refused" if settings.redis_away == "closed" else "each host decides on limits alone"
        reason = error.reason if isinstance(error, LinkLost) else "the address cannot be read"
        yield Finding("redis", False, f"does not answer ({reason}): {meanwhile}", "See that it runs, and that GATEWAY_REDIS_URL is right.")
        return
    if forgets:
        yield Finding("redis", False, f"{version} may forget limits when its memory is full", "Set its maxmemory-policy to noeviction.")
    else:
        yield Finding("redis", True, f"{version} answers: limits hold over all hosts")


def _tls(settings: Settings) -> Iterator[Finding]:
    if ServerTls.of(settings) is not None:
        whose = "" if settings.tls_client_ca_file is None else f", and clients are checked against {settings.tls_client_ca_file}"
        yield Finding("tls", True, f"{settings.tls_cert_file} and its key can be used{whose}")
    check_upstream_ca(settings.upstream_ca_file)


def _port(settings: Settings) -> Iterator[Finding]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # compared with, not bound to
    try:
        socket.create_connection((host, settings.port), timeout=_PROBE_S).close()
    except OSError:
        yield _can_bind(settings)
        return
    if _is_ours(host, settings.port, own_client.context(settings.run_dir) if settings.tls_cert_file is not None else None):
        yield Finding("port", True, f"the gateway answers on {host}:{settings.port}")
    else:
        fix = "Stop that program, or choose another port with PORT."
        yield Finding("port", False, f"something that is not this gateway listens on {host}:{settings.port}", fix)


def _can_bind(settings: Settings) -> Finding:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        return Finding("port", False, f"{place} cannot be used ({error.strerror or type(error).__name__})", "Correct HOST or PORT.")
    return Finding("port", True, f"{settings.host}:{settings.port} is free; no server runs there")


def _is_ours(host: str, port: int, tls: ssl.SSLContext | None) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_PROBE_S)
    if tls is not None:
        connection = http.client.HTTPSConnection(host, port, timeout=_PROBE_S, context=tls)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        return answer.status == 200 and answer.getheader("x-request-id") is not None
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _disk(settings: Settings) -> Iterator[Finding]:
    place = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    free_bytes = shutil.disk_usage(place).free
    message = f"{free_bytes / 1e9:.1f} GB are free at {place}"
    if free_bytes < _MIN_FREE_BYTES:
        yield Finding("disk", False, message, "Make room: without it requests are refused, because they cannot be accounted for.")
    else:
        yield Finding("disk", True, message)


def _ledger(settings: Settings) -> Iterator[Finding]:
    """What is on disk and not in the database yet, and how much room there is for more."""
    from gateway.keeper.refused import REFUSED_FILE, refused_lines
    from gateway.metering.backlog import backlog

    folder = settings.run_dir / "ledger"
    if refused := refused_lines(folder):
        how = f"They are in no report: look at {folder / REFUSED_FILE}, then move it away."
        yield Finding("ledger", False, f"{refused} lines could not be booked and were set aside", how)
    found = backlog(folder)
    bound = f" of {settings.ledger_max_mb:,.0f}" if settings.ledger_max_mb else ""
    waits_s = 0.0 if found.oldest_s is None else max(0.0, time.time() - found.oldest_s)
    said = f"{found.disk_bytes / 1e6:,.0f}{bound} MB in {found.segments} segments, {found.waiting_bytes / 1e6:,.1f} MB not in the database"
    if settings.ledger_max_mb and found.disk_bytes > 0.8 * settings.ledger_max_mb * 1e6:
        how = "See that the database answers and a keeper runs, or raise GATEWAY_LEDGER_MAX_MB; when it is full, requests are refused."
        yield Finding("ledger", False, f"is nearly full: {said}", how)
    elif found.waiting_bytes and waits_s > _WAITING_S:
        how = "See that the database answers and a server with its keeper runs; `gateway usage` ships what waits too."
        yield Finding("ledger", False, f"waits for {waits_s:,.0f} s: {said}", how)
    else:
        yield Finding("ledger", True, said)


def _content_log(settings: Settings) -> Iterator[Finding]:
    """What is on disk and not in the database yet."""
    from gateway.metering.spool import waiting_bytes

    waiting = waiting_bytes(settings.run_dir / "content")
    if waiting > 0.8 * settings.content_spool_max_mb * 1e6:
        how = (
            "See that the database answers and a keeper runs, or raise GATEWAY_CONTENT_SPOOL_MAX_MB; when it is full, content is not kept."
        )
        yield Finding("content log", False, f"{waiting / 1e6:,.0f} of {settings.content_spool_max_mb:,.0f} MB wait on the disk", how)
    elif waiting:
        yield Finding("content log", True, f"{waiting / 1e6:,.1f} MB wait on the disk for the database")


def _descriptors(settings: Settings) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_DESCRIPTORS:
        fix = f"Raise the hard limit of open files (ulimit -Hn, LimitNOFILE=) to {_MIN_DESCRIPTORS} or more."
        yield Finding("descriptors", False, f"a process may open only {hard} files; every open stream takes two", fix)
    else:
        yield Finding("descriptors", True, "a process may open enough files")


def _data_plane(settings: Settings) -> Iterator[Finding]:
    reason = native.why_interpreted()
    yield Finding("data plane", True, "runs compiled" if reason is None else f"runs interpreted, slower: {reason}")
