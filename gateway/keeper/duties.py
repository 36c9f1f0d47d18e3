"""What the keeper does: ship the ledger and the content log, run the local models that the live revision names, probe the backends that it
says are to be probed, store metric samples, forget what ran out.

One keeper per host works; another waits for its lock and takes over when it dies.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from backends.local import LocalModels, LocalSpec
from gateway.keeper.budgets import BudgetWatch
from gateway.keeper.contents import ContentShipper
from gateway.keeper.probes import Prober, needs_secrets, wanted_probes
from gateway.keeper.samples import Sampler, client, scrape
from gateway.keeper.ship import Shipper
from gateway.keeper.webhook import Webhook
from gateway.routing.probes import FILE_NAME as PROBES_FILE
from gateway.routing.stored import read_stored
from gateway.routing.table import local_specs
from gateway.settings import Settings
from gateway.store import days, login_addresses, password_links, revisions, samples, segments, tokens
from gateway.store.engine import Database
from gateway.store.errors import SchemaForeign, StoreUnavailable
from gateway.store.generation import Generation
from gateway.store.own_key import check_keys
from gateway.store.samples import STEP_S
from gateway.store.schema import newest
from gateway.store.secret_key import SecretKeys
from gateway.store.secrets import SecretBox, read_readable

logger = structlog.get_logger(__name__)

SHIP_S = 1.0  # the ledger is to be readable at most 2 s after a request has ended
LOOK_S = 0.2
BUDGETS_S = 1.0
ADDRESSES_KEPT_S = 180 * 86_400  # from which somebody has logged in
TIDY_S = 3600.0
FORGET_SAMPLES_S = 300.0  # few at a time: nobody who writes waits for long
DEMO_MODELS = Path(__file__).parent.parent.parent / "backends" / "worker" / "demo"


class Keeper:
    """Runs until SIGTERM or SIGINT; then it stops the local models and ships what is left."""

    def __init__(self, settings: Settings, server_url: str) -> None:
        self._settings = settings
        self._server_url = server_url
        self._db = Database(settings.database, newest())
        self._generation = Generation(settings.run_dir / "generation")
        self._shipper = Shipper(self._db, settings.run_dir / "ledger")
        self._contents = ContentShipper(self._db, settings.run_dir / "content", settings.content_kept_days * days.DAY_S, self._keys)
        self._models = LocalModels(
            state_file=settings.run_dir / "local.json",
            on_change=self._tell_servers,
            models_dir=settings.models_dir,
            fallback_dir=DEMO_MODELS,
            hub=settings.hub_access,
            device=settings.model_device,
            dtype=settings.model_dtype,
        )
        self._prober = Prober(
            settings.run_dir / PROBES_FILE,
            self._tell_servers,
            ca_file=settings.upstream_ca_file,
            allow_link_local=settings.allow_link_local,
        )
        self._http = client(settings.run_dir)
        self._sampler = Sampler(self._db, lambda: scrape(self._http, server_url))
        self._webhook = _webhook(settings)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Raises `SchemaForeign` where the database is another version's."""
        await self._require_schema()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        while not self._shipper.acquire() and not self._stop.is_set():
            await self._wait(0.5)
        duties = [
            asyncio.create_task(self._every(SHIP_S, self._shipper.ship), name="ship"),
            asyncio.create_task(self._every(SHIP_S, self._contents.ship), name="contents"),
            asyncio.create_task(self._every(TIDY_S, self._tidy), name="tidy"),
            asyncio.create_task(self._every(FORGET_SAMPLES_S, self._forget_samples), name="forget samples"),
            asyncio.create_task(self._every(TIDY_S, self._contents.tidy), name="old contents"),
            asyncio.create_task(self._follow_revision(), name="revision"),
            asyncio.create_task(self._every(1.0, self._prober.publish), name="probes"),
        ]
        if self._server_url:
            duties.append(asyncio.create_task(self._every(STEP_S, self._sampler.look, on_the_clock=True), name="sample"))
        if self._webhook is not None:
            duties.append(asyncio.create_task(self._every(BUDGETS_S, BudgetWatch(self._db, self._webhook).look), name="budgets"))
        await self._stop.wait()
        for duty in duties:
            duty.cancel()
        await asyncio.gather(*duties, return_exceptions=True)
        await self._http.aclose()
        if self._webhook is not None:
            await self._webhook.close()
        await self._prober.close()
        await self._models.close()
        await self._ship_the_rest()
        self._shipper.close()
        self._generation.close()
        await self._db.close()

    async def _require_schema(self) -> None:
        try:
            await self._db.require_schema()
        except SchemaForeign:
            await self._http.aclose()
            self._generation.close()
            await self._db.close()
            raise
        except StoreUnavailable:
            logger.warning("the database is away: the duties wait for it")

    def _tell_servers(self) -> None:
        self._generation.bump_local()

    async def _ship_the_rest(self) -> None:
        try:
            await self._shipper.ship_the_last()
            await self._contents.ship()
        except StoreUnavailable:
            logger.warning("the database is away: the ledger stays on disk and is shipped at the next start")

    async def _every(self, period_s: float, duty: Callable[[], Awaitable[object]], *, on_the_clock: bool = False) -> None:
        """Repeat a duty; a failure is logged once until it works again, and never ends the keeper. `on_the_clock`: at whole multiples of
        the period since 1970, not at once.
        """
        failing = False
        while True:
            try:
                await duty()
                failing = False
            except StoreUnavailable as error:
                if not failing:
                    logger.warning("the database is away", duty=getattr(duty, "__name__", "duty"), reason=error.reason)
                failing = True
            except Exception:
                if not failing:
                    logger.exception("a duty failed", duty=getattr(duty, "__name__", "duty"))
                failing = True
            await asyncio.sleep(period_s - time.time() % period_s if on_the_clock else period_s)

    async def _follow_revision(self) -> None:
        """Local models and probes as the live revision names them; looked at whenever something changed."""
        seen: int | None = None
        while True:
            change = self._generation.change
            if change != seen:
                try:
                    await self._want()
                    seen = change
                except StoreUnavailable:
                    await asyncio.sleep(0.5)
                except Exception:
                    logger.exception("the local models and probes could not be brought up to date")
                    await asyncio.sleep(2)
            await asyncio.sleep(LOOK_S)

    async def _want(self) -> None:
        async with self._db.read() as conn:
            revision = await revisions.live_revision(conn)
        if revision is None:
            await self._models.set_wanted([])
            self._prober.set_wanted(0, {})
            return
        document = read_stored(revision.document).document
        await self._models.set_wanted([LocalSpec(spec.path, spec.port, absolute_allowed=True) for spec in local_specs(document)])
        secrets = await self._secrets() if needs_secrets(document) else {}
        self._prober.set_wanted(revision.id, wanted_probes(document, secrets))

    async def _keys(self) -> SecretKeys:
        return await check_keys(self._db, self._settings.secret_key_sources())

    async def _secrets(self) -> dict[str, str]:
        box = SecretBox.of(await self._keys())
        async with self._db.read() as conn:
            opened, faults = await read_readable(conn, box)
        for fault in faults:
            logger.warning("what needs this secret is not probed", reason=str(fault))
        return opened

    async def _forget_samples(self) -> None:
        """What is older than its width is kept for."""
        now_s = time.time()
        for width in samples.WIDTHS:
            async with self._db.write() as conn:
                await samples.purge(conn, width, now_s)

    async def _tidy(self) -> None:
        """Forget what has run out."""
        now_s = time.time()
        async with self._db.write() as conn:
            await tokens.purge(conn, now_s)
            await password_links.purge(conn, now_s)
            await login_addresses.purge(conn, now_s - ADDRESSES_KEPT_S)
        if kept_days := self._settings.usage_kept_days:
            oldest_s = now_s - kept_days * days.DAY_S
            async with self._db.write() as conn:
                await segments.purge(conn, oldest_s)
            for name in await days.drop_before(self._db, oldest_s):
                logger.info("the rows of a day were dropped at their end; reports stay", table=name)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            pass


def _webhook(settings: Settings) -> Webhook | None:
    if not settings.webhook_url:
        return None
    return Webhook(
        settings.webhook_url,
        settings.webhook_secret.get_secret_value(),
        ca_file=settings.upstream_ca_file,
        allow_link_local=settings.allow_link_local,
    )
