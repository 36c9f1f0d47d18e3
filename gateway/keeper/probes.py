"""Active probes: backends that ask for it are looked at every few seconds, whether or not they get requests.

A GET, no redirects, any 2xx is alive. Two failures in a row are dead, one success is alive. One keeper per host probes for all its serving
processes, which learn of it through `routing.probes`. Every probe has a connection of its own: a pooled one would say nothing about whether
the backend still accepts any. Nothing connects to addresses that backends may not have (auth.outbound).
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import structlog

from auth.outbound import UNANSWERED, Pinned, failure
from backends.custom import verifying
from gateway.routing.document import CustomEntry, RevisionDocument
from gateway.routing.probes import Probed, write_probes
from gateway.routing.table import SecretMissing, spec_of

logger = structlog.get_logger(__name__)

FAILURES = 2
PUBLISH_S = 0.2  # the file is written at most this often
SPREAD_S = 1.0  # the first probes begin within this time, not all at once
AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Probe:
    """What to ask. Targets with equal probes share one."""

    url: str
    authorization: str | None = field(repr=False)
    interval_s: float
    timeout_s: float
    allow_link_local: bool = False


class Prober:
    """Keeps the wanted probes running and their results in the file. `on_change` is called after a verdict has changed there."""

    def __init__(
        self,
        file: Path,
        on_change: Callable[[], None],
        *,
        ca_file: Path | None = None,
        allow_link_local: bool = False,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`ca_file`: further authorities for TLS. `allow_link_local`: for all of them. `draw`: uniform in [0, 1)."""
        self._file = file
        self._ca_file = ca_file
        self._allow_link_local = allow_link_local
        self._on_change = on_change
        self._draw = draw
        self._revision = 0
        self._names: dict[str, Probe] = {}
        self._watches: dict[Probe, _Watch] = {}
        self._clients: dict[tuple[str, bool], httpx.AsyncClient] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._news = asyncio.Event()
        self._changed = True  # what a keeper before this one left is not ours
        self._published = False

    def set_wanted(self, revision: int, wanted: Mapping[str, Probe]) -> None:
        """`wanted`: by `<model>/<backend>`. Probes that stay go on with what they know."""
        if self._revision == revision and self._names == wanted and not self._changed:
            return
        self._revision, self._names = revision, dict(wanted)
        probes = set(wanted.values())
        for gone in self._watches.keys() - probes:
            self._watches.pop(gone).task.cancel()
        for probe in probes - self._watches.keys():
            watch = self._watches[probe] = _Watch()
            watch.task = asyncio.create_task(self._watch(probe, watch), name="probe")
        self._changed = True
        self._news.set()

    async def publish(self) -> None:
        """Write what is new as it comes. Runs until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._published = True
            if self._names:
                known = ((name, self._watches[probe].result(probe)) for name, probe in self._names.items())
                write_probes(self._file, self._revision, {name: result for name, result in known if result is not None})
            else:
                self._file.unlink(missing_ok=True)
            if self._changed:
                self._changed = False
                self._on_change()
            await asyncio.sleep(PUBLISH_S)

    async def close(self) -> None:
        """End all probes; nothing is claimed any more."""
        tasks = [watch.task for watch in self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()
        if self._published:  # else the file is another keeper's
            self._file.unlink(missing_ok=True)
            self._on_change()

    async def _watch(self, probe: Probe, watch: _Watch) -> None:
        await asyncio.sleep(self._draw() * min(SPREAD_S, probe.interval_s))
        while True:
            began_s = time.monotonic()
            async with self._turns:
                reason = await self._look(probe)
            if watch.note(reason, time.time()):
                self._changed = True
                self._tell(probe, watch)
            self._news.set()
            await asyncio.sleep(max(0.05, probe.interval_s - (time.monotonic() - began_s)))

    async def _look(self, probe: Probe) -> str:
        """ "" if the backend is alive, else one word for why not."""
        headers = {"user-agent": "model-gateway", "accept": "*/*"}
        if probe.authorization is not None:
            headers["authorization"] = probe.authorization
        began_s, limit_s = time.monotonic(), probe.timeout_s
        try:
            # Each step has its own limit, since a cancelled TLS handshake would leave its socket open; who is cancelled trickles.
            async with (
                asyncio.timeout(2 * limit_s),
                self._client(probe).stream("GET", probe.url, headers=headers, timeout=limit_s) as answer,
            ):
                if time.monotonic() - began_s > limit_s:
                    return "timeout"
                return "" if answer.is_success else str(answer.status_code)  # the body is nobody's: its length does not matter
        except UNANSWERED as error:
            return failure(error)

    def _client(self, probe: Probe) -> httpx.AsyncClient:
        """Those for plain HTTP apart from those for TLS: reading the system's certificates takes a while, and only the latter need them."""
        scheme, allowed = urlsplit(probe.url).scheme, probe.allow_link_local or self._allow_link_local
        client = self._clients.get((scheme, allowed))
        if client is None:
            verify: ssl.SSLContext | bool = verifying(self._ca_file) if scheme == "https" else False
            inner = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
            client = httpx.AsyncClient(transport=Pinned(inner, allow_link_local=allowed), trust_env=False, follow_redirects=False)
            self._clients[(scheme, allowed)] = client
        return client

    def _tell(self, probe: Probe, watch: _Watch) -> None:
        names = [name for name, wanted in self._names.items() if wanted == probe]
        if watch.alive:
            logger.info("the probe succeeds", backends=names)
        else:
            logger.warning("the probe fails", backends=names, reason=watch.reason)


class _Watch:
    """What one probe has found so far."""

    __slots__ = ("_failures", "alive", "checked_s", "reason", "task")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.alive: bool | None = None
        self.checked_s = 0.0
        self.reason = ""
        self._failures = 0

    def note(self, reason: str, wall_s: float) -> bool:
        """Take one result. True: the verdict has changed."""
        self.checked_s, self.reason = wall_s, reason
        self._failures = self._failures + 1 if reason else 0
        alive = self.alive
        if not reason:
            alive = True
        elif self._failures >= FAILURES:
            alive = False
        changed, self.alive = alive is not self.alive, alive
        return changed

    def result(self, probe: Probe) -> Probed | None:
        if not self.checked_s:
            return None
        return Probed(self.alive, self.checked_s, probe.interval_s, probe.timeout_s, self.reason)


def wanted_probes(document: RevisionDocument, secrets: Mapping[str, str]) -> dict[str, Probe]:
    """The probes that a revision asks for, by `<model>/<backend>`. A backend whose secret is missing gets no requests, and no probe."""
    wanted: dict[str, Probe] = {}
    for name, entry in _probed_entries(document):
        try:
            authorization = spec_of(entry, secrets).authorization if _shows_credential(entry) else None
        except SecretMissing:
            continue
        if entry.probe is not None:
            probe, url = entry.probe, probe_url(entry.base_url, entry.probe.path)
            wanted[name] = Probe(url, authorization, probe.interval_s, probe.timeout_s, entry.allow_link_local)
    return wanted


def needs_secrets(document: RevisionDocument) -> bool:
    """Does any of its probes send a credential?"""
    return any(_shows_credential(entry) for _, entry in _probed_entries(document))


def probe_url(base_url: str, path: str) -> str:
    """`path` from the root of the server if it begins with a slash, else below `base_url` (which ends without one)."""
    if not path.startswith("/"):
        return f"{base_url}/{path}"
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}{path}"


def below(base_url: str, url: str) -> bool:
    """Does this URL of the same server lie at or below the path of `base_url`? Only there does its credential belong."""
    base, path = urlsplit(base_url).path, urlsplit(url).path
    return (path == base or path.startswith(f"{base}/")) and ".." not in unquote(path).split("/")


def _probed_entries(document: RevisionDocument) -> Iterator[tuple[str, CustomEntry]]:
    for model in document.models:
        for backend_id, entry in zip(model.backend_ids(), model.backends, strict=True):
            if isinstance(entry, CustomEntry) and entry.probe is not None:
                yield f"{model.id}/{backend_id}", entry


def _shows_credential(entry: CustomEntry) -> bool:
    has_one = entry.api_key is not None or entry.authorization is not None
    return has_one and entry.probe is not None and below(entry.base_url, probe_url(entry.base_url, entry.probe.path))
