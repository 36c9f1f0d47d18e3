"""The composition root: Settings -> services. The only place that constructs; everything else is handed what it needs.

`Services.open` builds one server process's services, `follow` keeps them up with changes, `close` ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from concurrent.futures import Executor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from auth.address import forbidden_address, parse_networks
from auth.authenticator import Authenticator
from auth.login import Login
from auth.oidc import OidcLogin
from auth.passwords import Passwords
from auth.provider import Provider
from auth.seal import Seal
from auth.throttle import Throttle
from auth.tokens import AccessTokens
from backends.custom import CustomBackend, verifying
from backends.echo import EchoBackend
from backends.folder import weights_folder
from backends.local import LocalBackend, LocalState, PathRefused, locate
from gateway.api import create_api
from gateway.api.apart import Apart
from gateway.changes import Actor, ensure_signing_key
from gateway.hosts import HostLimits
from gateway.keeper.reconcile import reconcile
from gateway.keeper.settle import settle
from gateway.limits.base import Limiter
from gateway.limits.callers import Callers
from gateway.limits.levels import FORM, Levels
from gateway.limits.shared import SharedLimiter
from gateway.limits.slots import Slots
from gateway.metering.backlog import backlog
from gateway.metering.commit import GroupCommit
from gateway.metering.exposition import exposition
from gateway.metering.ledger import SegmentWriter
from gateway.metering.log import RequestLog
from gateway.metering.meter import Meter
from gateway.metering.names import make_metrics
from gateway.metering.spool import ContentLog
from gateway.routing.health import HealthBoard
from gateway.routing.probes import FILE_NAME as PROBES_FILE
from gateway.routing.probes import ProbeFile
from gateway.routing.retries import RetryBudgets
from gateway.routing.stored import read_stored
from gateway.routing.table import BackendSpec, RouteTable, Timeouts, build_table, model_limits
from gateway.runtime import Control, Relay
from gateway.store import budget_events, revisions, signing
from gateway.store.engine import Database
from gateway.store.errors import SecretUnreadable, StoreUnavailable
from gateway.store.generation import Generation
from gateway.store.live import LiveTables
from gateway.store.logins import Accounts, RefreshTokens
from gateway.store.own_key import settle_keys
from gateway.store.schema import newest
from gateway.store.secret_key import CONTENTS, derive
from gateway.store.secrets import SecretBox, read_readable
from gateway.store.spending import Spending
from gateway.wire.tokens import Tokenizer, TokenizerFault, Tokenizers

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from starlette.types import ASGIApp

    from auth.issuers import TrustedIssuers
    from auth.principal import Limits
    from backends.base import Backend
    from gateway.settings import Settings

logger = structlog.get_logger(__name__)

POLL_S = 0.015  # how often the shared counters are looked at: a change is in force well within 50 ms
OBSERVE_S = 1.0
SWEEP_S = 0.5  # what a killed process held is free within a second
SETTLE_S = 10.0  # how long a starting server waits for the ledger of one that died
CURRENT_S = 2.0  # how long who asks for what was changed waits for it
LOST_WORD_S = 1.0  # the same on SQLite, where the counters tell of each change: only to see that the file is still there
USES_S = 10.0
STOPS_S = 1.0
RECONCILE_S = 15.0  # how often what limits have counted is compared with the books
SPENDING_STEP = 400  # callers whose spending is read at once, on a process that serves
LIMITS_STEP = 100
ISSUERS_S = 3.0  # how long a starting server waits for the keys of trusted issuers
RETRY_S = 1.0  # how often what could not be put in force is looked at again
REMOTE_POLL_S = 0.5  # how often the change log itself is read, for changes made on other hosts
REVISION, SIGNING = "the live revision", "the keys that sign login tokens"
OIDC_LOGINS = "logins through a provider"  # purpose of a key: sealing what they remember in the browser
DEMO_MODELS = Path(__file__).parent.parent / "backends" / "worker" / "demo"


class LiveBackends:
    """One backend per spec, kept over revisions: its connections survive a change of weights."""

    def __init__(self, state: LocalState, tls: ssl.SSLContext, allow_link_local: bool = False) -> None:
        self._state = state
        self._tls = tls
        self._allow_link_local = allow_link_local
        self._live: dict[BackendSpec, Backend] = {}
        self._wanted: set[BackendSpec] = set()

    def open(self, spec: BackendSpec) -> Backend:
        self._wanted.add(spec)
        backend = self._live.get(spec)
        if backend is None:
            backend = self._live[spec] = self._make(spec)
        return backend

    def _make(self, spec: BackendSpec) -> Backend:
        if spec.type == "custom":
            forbidden = partial(forbidden_address, allow_link_local=spec.allow_link_local or self._allow_link_local)
            return CustomBackend(spec.base_url, spec.authorization, tls=self._tls, forbidden=forbidden)
        if spec.type == "local":
            return LocalBackend(spec.path, self._state)
        return EchoBackend(spec.delay_ms, spec.chunk_delay_ms)

    async def retire(self) -> None:
        """Close what the table just built no longer names; running exchanges finish."""
        gone = self._live.keys() - self._wanted
        self._wanted = set()
        for spec in gone:
            await self._live.pop(spec).close()

    async def close(self) -> None:
        self._wanted = set()
        await self.retire()


class RouteTokenizers:
    """The tokenizer of each route: its `tokenizer:` folder, else the folder of its first local backend."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache = Tokenizers()
        self.pool: Executor = self._cache.pool
        self._folders: dict[str, Path] = {}

    def of(self, route_id: str) -> Tokenizer | None:
        folder = self._folders.get(route_id)
        return None if folder is None else self._cache.peek(folder)

    async def follow(self, table: RouteTable) -> None:
        """Load what the routes of a new table need; a folder that cannot be read leaves its route without a tokenizer."""
        folders: dict[str, Path] = {}
        for route in table.routes.values():
            named = route.tokenizer or next((t.path for t in route.targets if t.path is not None), None)
            if named is None or named == "upstream":
                continue
            try:
                source = locate(named, self._settings.models_dir, DEMO_MODELS, hub=False, absolute_allowed=True)
            except PathRefused:
                continue
            if source.folder is not None:
                folders[route.id] = weights_folder(source.folder)
        for folder in set(folders.values()):
            try:
                await self._cache.load(folder)
            except TokenizerFault as error:
                logger.warning("tokenizer unusable", folder=str(folder), fault=str(error))
        self._folders = folders

    def close(self) -> None:
        self._cache.close()


class Services:
    """One server process's services. Made by `open`."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        generation: Generation,
        live: LiveTables,
        box: SecretBox,
        content_box: SecretBox,
        tokens: AccessTokens,
        oidc: OidcLogin | None = None,
        others: TrustedIssuers | None = None,
    ) -> None:
        self.settings = settings
        self.db = db
        self.generation = generation
        self.live = live
        self.box = box
        self._tokens = tokens
        self._others = others
        self.local_state = LocalState(settings.run_dir / "local.json")
        self._backends = LiveBackends(self.local_state, verifying(settings.upstream_ca_file), settings.allow_link_local)
        self._tokenizers = RouteTokenizers(settings)
        self._spending = Spending()
        self._models = Callers()  # those of the routes that are limited
        self._retries = RetryBudgets()
        self._probes = ProbeFile(settings.run_dir / PROBES_FILE)
        self._due: set[str] = set()  # what the change log says is new, and is not in force yet: REVISION, SIGNING
        self._held: set[str] = set()  # of these, what could not be put in force: `_retry` looks at it again
        self._turn = asyncio.Lock()  # who comes second finds in force what the first has read
        self._current = -1  # the change up to which all is in force, what was due included
        self._catching: asyncio.Task[None] | None = None
        self._secrets: dict[str, str] = {}  # those in use, in the clear, by name
        self._sealed: tuple[str, ...] = ()  # the names of those that cannot be opened
        self._tokenizing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._started_s = time.monotonic()
        self._was_ready = False
        passwords = Passwords(settings.password_lock)
        metrics = make_metrics(CollectorRegistry())
        metrics.build.labels(version("model-gateway")).set(1)
        proxies = parse_networks(settings.trusted_proxies)
        self.ledger = SegmentWriter(settings.run_dir / "ledger", max_bytes=int(settings.ledger_max_mb * 1e6))
        self._commit = GroupCommit(self.ledger, settings.ledger_fsync_ms / 1000) if settings.ledger_fsync_ms else None
        if self._commit is not None:
            self._commit.start()
        self._contents = ContentLog(
            settings.run_dir / "content",
            content_box.seal_bytes,
            content_box.fingerprint,
            max_bytes=settings.content_log_max_bytes,
            spool_bytes=int(settings.content_spool_max_mb * 1e6),
        )
        self._levels = Levels(settings.run_dir / f"levels-{FORM}")
        self._limiter = SharedLimiter(self._levels, self._spending.spent)
        self.relay = Relay(
            authenticator=Authenticator(live, tokens, others),
            known=live,
            limiter=self._limiter,
            ledger=self.ledger,
            meter=Meter(metrics),
            log=RequestLog(),
            contents=self._contents,
            tokenizers=self._tokenizers,
            table=RouteTable(0, {}),
            max_body_bytes=int(settings.max_body_mb * 1e6),
            max_answer_bytes=int(settings.max_answer_mb * 1e6),
            max_held_bytes=int(settings.max_held_mb * 1e6),
            timeout_body_s=settings.timeout_body_s,
            slots=Slots(settings.max_running, settings.queue_wait_s),
            health=HealthBoard(random.Random().random),  # noqa: S311  # spreads trials in time, hides nothing
            cors_origins=frozenset(origin.encode() for origin in settings.cors_origins),
            trusted_proxies=proxies,
            default_models=(settings.default_embedding_model or "demo-embed", settings.default_chat_model or "demo-chat"),
        )
        self._hosts = HostLimits(settings, db, self._limiter, self._use_limiter, self._spending.spent, self._read_all_spending)
        self.control = Control(
            db=db,
            generation=generation,
            live=live,
            login=Login(
                Accounts(db),
                RefreshTokens(db),
                passwords,
                tokens,
                Throttle(settings.run_dir / "logins"),
                login_lifetime_s=settings.login_lifetime_s,
            ),
            tokens=tokens,
            passwords=passwords,
            secret_box=self.box,
            content_box=content_box,
            relay=self.relay,
            local_state=self.local_state,
            cors_origins=settings.cors_origins,
            cookie_secure=settings.tls_cert_file is not None,
            version=version("model-gateway"),
            ready=self.ready,
            metrics_text=lambda: exposition(self.relay.meter),
            trusted_proxies=proxies,
            oidc=oidc,
        )

    @classmethod
    async def open(cls, settings: Settings) -> Services:
        """Load everything that a request may need, so that no request waits for the store. Raises `SchemaForeign`, `SecretKeyRefused`."""
        db = Database(settings.database, newest())
        try:
            return await cls._open(settings, db)
        except BaseException:
            await db.close()  # its threads would outlive the process's will to end
            raise

    @classmethod
    async def _open(cls, settings: Settings, db: Database) -> Services:
        await db.require_schema()
        keys = await settle_keys(db, settings.secret_key_sources())
        box = SecretBox.of(keys)
        generation = Generation(settings.run_dir / "generation")
        await ensure_signing_key(db, generation, Actor(user_id=None, via="init"), box=box, algorithm=settings.jwt_algorithm)
        live = await LiveTables.load(db, settings.stale_s, generation)
        generation.set_change(live.applied)
        tokens = AccessTokens(())
        others = _others(settings)
        content_box = SecretBox.of(keys, CONTENTS)
        services = cls(settings, db, generation, live, box, content_box, tokens, _oidc(settings, keys.current), others)
        if others is not None:
            await others.start(ISSUERS_S)
        await services._read_spending({one.limit_id: one.limits for one in live.limited()}, starting=True)
        try:
            await services._load_signing()
        except SecretUnreadable as fault:
            services._hold(SIGNING, fault)
        await services._tokenizers.follow(await services._load_table(starting=True))
        await services._hosts.start()
        return services

    def _use_limiter(self, limiter: Limiter) -> None:
        self.relay.limiter = limiter

    def asgi(self) -> ASGIApp:
        """The control plane."""
        return Apart(self.whole_api(), self.settings.reader_socket)

    def whole_api(self) -> ASGIApp:
        """The same, all answered by this process."""
        return create_api(self.control)

    async def _read_spending(self, limits: Mapping[str, Limits], *, starting: bool) -> None:
        """What those with a budget have spent (`starting`: what a process wrote that was killed a moment ago included)."""
        if all(of.budget is None and of.token_budget is None for of in limits.values()):
            return
        if starting and not await settle(self.db, self.settings.run_dir, SETTLE_S):
            logger.warning("the ledger is not up to date: budgets may let a little too much through")
        async with self.db.read() as conn:
            await self._spending.read(conn, limits)

    async def _read_all_spending(self) -> None:
        """Of everyone, while limits change: who was set back in that moment is read once more."""
        waiting = [limit_id for limit_id, of in self._all_limits().items() if of.budget is not None or of.token_budget is not None]
        while waiting:
            some = {limit_id: of for limit_id in waiting[-SPENDING_STEP:] if (of := self._limits(limit_id)) is not None}
            del waiting[-SPENDING_STEP:]
            await self._read_spending(some, starting=False)
            waiting += [limit_id for limit_id, of in some.items() if self._limits(limit_id) != of]

    def _all_limits(self) -> dict[str, Limits]:
        """In force, by limit id."""
        return {one.limit_id: one.limits for one in self.live.limited()} | self._models.limits()

    def _limits(self, limit_id: str) -> Limits | None:
        """Those in force; None: it is no more."""
        return self._models.kept(limit_id).limits if limit_id.startswith("model:") else self.live.limits(limit_id)

    async def _load_signing(self) -> None:
        """Put the signing keys in force. Where one cannot be opened none is issued: `SecretUnreadable`."""
        try:
            async with self.db.read() as conn:
                self._tokens.replace(await signing.read_all(conn, self.box, time.time()))
        except SecretUnreadable:
            self._tokens.withhold()
            raise

    async def _load_table(self, *, starting: bool = False) -> RouteTable:
        """Put the live revision in force. A secret that cannot be opened is what it was here when it could be; a backend that needs one
        that never could be is left out.
        """
        async with self.db.read() as conn:
            revision = await revisions.live_revision(conn)
            opened, faults = await read_readable(conn, self.box)
        self._sealed = tuple(fault.name for fault in faults)
        self._secrets = {name: self._secrets[name] for name in self._sealed if name in self._secrets} | opened
        if revision is None:
            return self.relay.table
        s, stored = self.settings, read_stored(revision.document)
        await self._read_spending(model_limits(stored.document), starting=starting)  # before they are in force
        table = build_table(
            stored.document,
            revision.id,
            int(revision.info.created_at),
            self._backends.open,
            Timeouts(s.timeout_connect_s, s.timeout_first_byte_s, s.timeout_idle_s, s.timeout_total_s),
            self._secrets,
            lambda spec, upstream_model: self.relay.health.of((spec, upstream_model)),
            self._retries.of,
            (*map(str, faults), *stored.problems),
            self._models.put,
        )
        for problem in table.problems:
            logger.warning("route table", problem=problem)
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            self.relay.meter.forget_targets()
        self.relay.table = table
        self.relay.meter.metrics.revision.set(table.revision)
        self.relay.health.retire(table.health_keys)
        self._retries.retire(table.routes)
        await self._backends.retire()
        return table

    async def follow(self, poll_s: float = POLL_S, *, waited_for: bool = True) -> None:
        """Apply changes as they are made. Runs until cancelled; the store may go away and come back meanwhile.

        `waited_for`: a change is answered when it is in force here. A process that is not must ask for it itself (`be_current`).
        """
        local, looked_s, observed_s, swept_s, failing = -1, 0.0, 0.0, 0.0, False
        remote_s = REMOTE_POLL_S if self.db.dialect == "postgresql" else LOST_WORD_S
        generation, live, wake, loop = self.generation, self.live, asyncio.Event(), asyncio.get_running_loop()
        timer: asyncio.Handle | None = None
        place, in_force = generation.follow() if waited_for else -1, 0 if self._due else live.applied
        reconciling = asyncio.create_task(self._reconcile(), name="reconcile")
        uses = asyncio.create_task(self._write_uses(), name="uses")
        retry = asyncio.create_task(self._retry(), name="retry")
        issuers = asyncio.create_task(self._others.follow(), name="issuers") if self._others is not None else None
        stops = asyncio.create_task(self._note_stops(), name="stops") if self.settings.webhook_url else None

        def behind(now_s: float) -> bool:
            unread = generation.change != live.applied or live.unfinished
            return bool(self._due) or unread or now_s > looked_s + remote_s

        def look() -> None:  # a plain timer: waking a task this often would cost more than all the rest of an idle server
            nonlocal timer, swept_s
            timer = loop.call_later(poll_s, look)  # first: whatever fails below, changes are looked for again
            now_s = time.monotonic()
            if now_s > swept_s + SWEEP_S:
                swept_s = now_s
                self._limiter.sweep()
            generation.note(place, in_force)
            if generation.local != local or now_s > observed_s + OBSERVE_S or behind(now_s):
                wake.set()

        look()
        try:
            while True:
                await wake.wait()
                wake.clear()
                now_s = time.monotonic()
                if now_s > observed_s + OBSERVE_S:
                    observed_s = now_s
                    self._observe()
                if generation.local != local:
                    local = generation.local
                    self.local_state.reload()
                    self._probes.follow(self.relay.table, now_s, time.time())
                if not behind(now_s):
                    continue
                looked_s = now_s
                try:
                    await self.catch_up()
                    in_force = live.applied
                    generation.note(place, in_force)
                    failing = False
                except StoreUnavailable:
                    await asyncio.sleep(0.2)  # what is in force stays in force
                except Exception:
                    if not failing:
                        logger.exception("a change could not be applied; it is tried again")
                    failing = True
                    await asyncio.sleep(1)
        finally:
            reconciling.cancel()
            uses.cancel()
            retry.cancel()
            if issuers is not None:
                issuers.cancel()
            if stops is not None:
                stops.cancel()
            if timer is not None:
                timer.cancel()  # what it looks at is closed next
            generation.leave(place)

    async def _write_uses(self) -> None:
        """Beside the loop that applies changes. Uses of keys on the control plane: the relay's are in the ledger, for the keeper."""
        while True:
            await asyncio.sleep(USES_S)
            with contextlib.suppress(StoreUnavailable):  # they wait
                await self.control.uses.write(self.db)

    async def _reconcile(self) -> None:
        """Beside the loop that applies changes. Any process of the host may be the one that does it."""
        while True:
            await asyncio.sleep(RECONCILE_S * (0.8 + 0.4 * random.random()))  # noqa: S311  # spreads processes in time, hides nothing
            try:
                await self._put_limits_again()
                await reconcile(self.db, self.settings.run_dir, self._levels, self._all_limits())
                await self._hosts.look_at_books()
            except StoreUnavailable:
                pass  # it is compared later
            except Exception:
                logger.exception("what limits have counted could not be compared with the books")

    async def _put_limits_again(self) -> None:
        """A process that was behind with its reading when it met a caller for the first time has put old limits in force for all. Each puts
        what it knows of again; not while it is behind itself, which would put the old ones in force once more.
        """
        for done, limit_id in enumerate(self._limiter.known(), 1):
            if done % LIMITS_STEP == 0:
                await asyncio.sleep(0)
            of_model = limit_id.startswith("model:")
            if self.live.behind or (of_model and (REVISION in self._due or REVISION in self._held)):
                continue
            limits = self._limits(limit_id)
            if limits is not None:
                self._limiter.put_again(limit_id, limits)

    async def _note_stops(self) -> None:
        """Which budgets have refused a request, for the keeper to tell of. Each is written once by each process."""
        noted: set[budget_events.Event] = set()
        while True:
            await asyncio.sleep(STOPS_S)
            stopped, self._limiter.stopped = self._limiter.stopped, set()
            now_s, found = time.time(), set()
            for limit_id, kind in stopped:
                limits = self._limits(limit_id)
                event = budget_events.stopped(limit_id, kind, limits, now_s) if limits is not None else None
                if event is not None and event not in noted:
                    found.add(event)
            if not found:
                continue
            try:
                async with self.db.write() as conn:
                    await budget_events.put(conn, [(event, "") for event in found], now_s)
            except StoreUnavailable:
                self._limiter.stopped |= stopped
                continue
            noted = {event for event in noted if event.until_s is None or event.until_s > now_s} | found

    async def be_current(self) -> bool:
        """Put in force what was announced on this host so far; False: it is not (the database is away, say). Takes two seconds at most."""
        if not self._is_current():
            if self._catching is None or self._catching.done():
                self._catching = asyncio.create_task(self._catch_up_once(), name="catch up")
            await asyncio.wait({self._catching}, timeout=CURRENT_S)  # one look for all who ask meanwhile
        return self._is_current()

    def _is_current(self) -> bool:
        return self.generation.change == self._current and not self._due

    async def _catch_up_once(self) -> None:
        with contextlib.suppress(Exception):  # `follow` tries it again, and says what it is
            async with self._turn:
                if not self._is_current():
                    await self._catch_up()

    async def catch_up(self) -> None:
        """Put in force what the change log says. Raises `StoreUnavailable`: what is in force stays so."""
        async with self._turn:
            await self._catch_up()

    async def _catch_up(self) -> None:
        announced = self.generation.change
        changed = await self.live.catch_up(self.db, self._spending)
        if self.live.applied > self.generation.change:  # made on another host
            self.generation.set_change(self.live.applied)
        elif self.live.applied < announced:  # an older copy of the database: what was announced is no more, and nobody is behind
            self.generation.reset_change(self.live.applied)
        if not changed.isdisjoint(("revision", "secret")):
            self._due.add(REVISION)
        if "signing_key" in changed:
            self._due.add(SIGNING)
        for what in sorted(self._due):
            await self._put_in_force(what)
        self._current = self.live.applied

    async def _put_in_force(self, what: str) -> None:
        """One of what is due. Where that fails, changes do not wait for it. Raises `StoreUnavailable`: it is due still."""
        self._due.discard(what)
        try:
            if what == REVISION:
                self._tokenize(await self._load_table())
            else:
                await self._load_signing()
            self._held.discard(what)
        except (StoreUnavailable, asyncio.CancelledError):
            self._due.add(what)
            raise
        except Exception as fault:
            self._hold(what, fault)

    def _hold(self, what: str, fault: Exception) -> None:
        """Left to `_retry`. Said once, until it is in force."""
        if what in self._held:
            return
        self._held.add(what)
        if isinstance(fault, SecretUnreadable):
            logger.error("nobody can log in; API keys work", reason=str(fault))
        else:
            logger.error("a change could not be applied; it is tried again", of=what, exc_info=fault)

    async def _retry(self) -> None:
        """Beside the loop that applies changes, which loads again what can be opened now."""
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                if self._sealed and await self._opens_more():
                    self._due.add(REVISION)
                if SIGNING in self._held:
                    async with self.db.read() as conn:
                        await signing.read_all(conn, self.box, time.time())
                self._due |= self._held
            except SecretUnreadable:
                self._due |= self._held - {SIGNING}
            except StoreUnavailable:
                pass  # what is in force stays in force
            except Exception:
                self._due |= self._held  # loading it fails in the same way, and has said so

    async def _opens_more(self) -> bool:
        """Can a secret be opened now that could not be when the table was loaded?"""
        async with self.db.read() as conn:
            _, faults = await read_readable(conn, self.box)
        return tuple(fault.name for fault in faults) != self._sealed

    def _tokenize(self, table: RouteTable) -> None:
        """Beside the loop that applies changes: a tokenizer takes its time, and a revoked key must not wait for it."""
        if self._tokenizing is not None:
            self._tokenizing.cancel()
        self._tokenizing = asyncio.create_task(self._tokenizers.follow(table), name="tokenizers")

    def _observe(self) -> None:
        """Figures that are states, not events."""
        meter, table, now_s = self.relay.meter, self.relay.table, time.monotonic()
        metrics = meter.metrics
        self._probes.follow(table, now_s, time.time())  # also where no verdict changed: one that is not said again ceases to hold
        self.relay.health.settle(now_s)
        for route in table.routes.values():
            for target in route.targets:
                health = target.health
                metrics.backend_ready.labels(route.id, target.id).set(target.backend.ready)
                meter.health(route.id, target.id, health.state(now_s), health.verdict.alive(now_s))
        if (away := self._hosts.away) is not None:
            metrics.redis_up.labels(self.settings.redis_away).set(not away)
        metrics.log_lines_lost.inc(self.relay.log.take_lost())
        metrics.content_dropped.inc(self._contents.take_dropped())
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_at_ledger(), name="backlog")

    async def _look_at_ledger(self) -> None:
        """In a thread: it scans a folder and a segment, and a disk may take its time."""
        metrics = self.relay.meter.metrics
        try:
            waiting = await asyncio.to_thread(backlog, self.settings.run_dir / "ledger")
        except OSError as error:
            logger.warning("the ledger's folder cannot be looked at", error=error.strerror)
            return
        metrics.ledger_waiting.set(waiting.waiting_bytes)
        metrics.ledger_disk.set(waiting.disk_bytes)
        metrics.ledger_segments.set(waiting.segments)
        metrics.ledger_age.set(0 if waiting.oldest_s is None else max(0.0, time.time() - waiting.oldest_s))

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Ready once the revision is in force and each local model is ready or failed its first start (at most 60 s)."""
        relay = self.relay
        if relay.draining:
            return False, {"server": "draining"}
        targets = (target for route in relay.table.routes.values() for target in route.targets)
        waiting = sorted({t.path for t in targets if t.path is not None and t.weight and not self._settled(t.path)})
        if waiting and not self._was_ready and time.monotonic() - self._started_s < 60:
            return False, {"revision": str(relay.table.revision), "models": f"loading {', '.join(waiting)}"}
        self._was_ready = True
        return True, {"revision": str(relay.table.revision), "models": "ready"}

    def _settled(self, path: str) -> bool:
        state = self.local_state.get(path)
        return state is not None and state.settled

    async def close(self) -> None:
        """After the last request: close the ledger, then the rest."""
        if self._tokenizing is not None:
            self._tokenizing.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self._catching is not None:
            self._catching.cancel()
        for request in list(self.relay.counting):
            request.hurry()
        self.relay.log.flush()
        if self._commit is not None:
            self._commit.stop()
        self.ledger.close()
        said = asyncio.create_task(asyncio.to_thread(self._contents.close), name="content log")  # seconds, beside what others wait for
        await self._hosts.close()
        self._limiter.close()
        self._tokenizers.close()
        self.control.passwords.close()
        await self._backends.close()
        if self.control.oidc is not None:
            await self.control.oidc.provider.close()
        with contextlib.suppress(StoreUnavailable):
            await self.control.uses.write(self.db, everything=True)
        await self.db.close()
        self.generation.close()
        await said


def _others(settings: Settings) -> TrustedIssuers | None:
    """The issuers of the settings whose tokens are accepted."""
    if not settings.trusted_issuers:
        return None
    from auth.fetch import Fetcher  # as below
    from auth.issuers import TrustedIssuers
    from auth.trusted import trusted_issuers

    def failed(issuer: str, word: str) -> None:
        logger.warning("the keys of a trusted issuer could not be fetched", issuer=issuer, fault=word)

    fetcher = Fetcher(tls=verifying(settings.upstream_ca_file), allow_link_local=settings.allow_link_local)
    return TrustedIssuers(trusted_issuers(settings.trusted_issuers), fetcher, failed)


def _oidc(settings: Settings, secret_key: str) -> OidcLogin | None:
    """Logging in through the provider of the settings."""
    if settings.oidc is None:
        return None
    from auth.fetch import Fetcher  # httpx: where nobody needs it, no process loads it

    fetcher = Fetcher(tls=verifying(settings.upstream_ca_file), allow_link_local=settings.allow_link_local)
    return OidcLogin(Provider(settings.oidc, fetcher), Seal(derive(secret_key, OIDC_LOGINS)))
