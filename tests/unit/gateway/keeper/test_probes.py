"""Which probes a revision asks for, what they find, and how that reaches the targets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from backends.echo import EchoBackend
from gateway.keeper.probes import Probe, Prober, below, needs_secrets, probe_url, wanted_probes
from gateway.routing.health import HealthBoard
from gateway.routing.probes import Probed, ProbeFile, read_probes, write_probes
from gateway.routing.reading import parse_document
from gateway.routing.table import RouteTable, Timeouts, build_table
from tests.upstream import Script, Seen, Upstream, Wire
from tests.wire.authority import Authority

BASE = "http://10.0.0.5:8000/v1"


def backend(**fields: Any) -> dict[str, Any]:
    return {"type": "custom", "baseURL": BASE, **fields}


def document(*backends: dict[str, Any]) -> Any:
    return parse_document({"models": [{"id": "team/chat", "backends": list(backends)}]})


class TestWanted:
    def test_only_those_that_ask_for_it(self) -> None:
        wanted = wanted_probes(document(backend(), backend(probe={"path": "/health", "intervalS": 3}), {"type": "echo"}), {})
        assert wanted == {"team/chat/custom-2": Probe("http://10.0.0.5:8000/health", None, 3, 2)}

    @pytest.mark.parametrize(
        ("path", "url", "sends"),
        [
            ("/health", "http://10.0.0.5:8000/health", False),
            ("models", f"{BASE}/models", True),
            ("/v1/models?x=1", f"{BASE}/models?x=1", True),
            ("/v1", BASE, True),
            ("/v10/models", "http://10.0.0.5:8000/v10/models", False),
            ("/v1/%2e%2e/admin", f"{BASE}/%2e%2e/admin", False),
        ],
    )
    def test_the_credential_goes_below_base_url_alone(self, path: str, url: str, sends: bool) -> None:
        found = document(backend(apiKey="upstream-key", probe={"path": path}))
        assert needs_secrets(found) is sends
        assert wanted_probes(found, {}) == {"team/chat/custom-1": Probe(url, "Bearer upstream-key" if sends else None, 10, 2)}
        assert "upstream-key" not in repr(wanted_probes(found, {}))

    def test_an_entry_that_allows_link_local_addresses_is_probed_there(self) -> None:
        found = document({"type": "custom", "allowLinkLocal": True, "baseURL": "http://169.254.1.1/v1", "probe": {"path": "/health"}})
        assert wanted_probes(found, {})["team/chat/custom-1"].allow_link_local

    def test_a_backend_whose_secret_is_missing_is_not_probed(self) -> None:
        found = document(backend(apiKey={"secret": "k"}, probe={"path": "models"}), backend(id="open", probe={"path": "/health"}))
        assert wanted_probes(found, {}).keys() == {"team/chat/custom-1", "team/chat/open"} - {"team/chat/custom-1"}
        assert wanted_probes(found, {"k": "x"})["team/chat/custom-1"].authorization == "Bearer x"

    def test_a_server_without_a_path(self) -> None:
        assert probe_url("http://h", "/health") == "http://h/health"
        assert below("http://h", "http://h/health")


class Scene:
    """A prober and what its file says."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.changes = 0
        self.news = asyncio.Event()
        self.prober = Prober(file, self._changed, draw=lambda: 0.0)

    def _changed(self) -> None:
        self.changes += 1
        self.news.set()

    async def until(self, holds: Callable[[dict[str, Probed]], bool]) -> dict[str, Probed]:
        async with asyncio.timeout(10):
            while not holds(found := read_probes(self.file)[1]):
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path / "probes.json")
    publishing = asyncio.create_task(scene.prober.publish())
    yield scene
    publishing.cancel()
    await scene.prober.close()
    assert not scene.file.exists()


async def alive(wire: Wire, seen: Seen) -> None:
    await wire.answer({"status": "ok"})


def answers(status: int, **headers: str) -> Script:
    async def script(wire: Wire, seen: Seen) -> None:
        await wire.answer({}, status, **headers)

    return script


async def hangs(wire: Wire, seen: Seen) -> None:
    await wire.until_closed()


async def resets(wire: Wire, seen: Seen) -> None:
    wire.reset()


async def babbles(wire: Wire, seen: Seen) -> None:
    await wire.send(b"SSH-2.0-OpenSSH_9\r\n\r\n")


async def never_ends(wire: Wire, seen: Seen) -> None:
    await wire.sse_head()
    await wire.until_closed()


class TestProber:
    @pytest.mark.parametrize(
        ("script", "found", "reason"),
        [
            (alive, True, ""),
            (answers(204), True, ""),
            (never_ends, True, ""),
            (answers(301, location="/elsewhere"), False, "301"),
            (answers(404), False, "404"),
            (answers(503), False, "503"),
            (hangs, False, "timeout"),
            (resets, False, "failed"),
            (babbles, False, "failed"),
        ],
    )
    async def test_what_counts_as_alive(self, scene: Scene, script: Script, found: bool, reason: str) -> None:
        async with Upstream(script) as upstream:
            scene.prober.set_wanted(
                3, {"chat/b": Probe(f"http://127.0.0.1:{upstream.port}/health", None, 0.1, 0.3 if script is hangs else 5)}
            )
            entry = (await scene.until(lambda found: "chat/b" in found and found["chat/b"].alive is not None))["chat/b"]
            assert (entry.alive, entry.reason, entry.interval_s) == (found, reason, 0.1)
            assert read_probes(scene.file)[0] == 3
            assert all(seen.path == "/health" and seen.method == "GET" for seen in upstream.seen)

    async def test_nobody_listens(self, scene: Scene) -> None:
        async with Upstream() as upstream:
            port = upstream.port
        scene.prober.set_wanted(1, {"chat/b": Probe(f"http://127.0.0.1:{port}/health", None, 0.1, 5)})
        entry = (await scene.until(lambda found: "chat/b" in found and found["chat/b"].alive is not None))["chat/b"]
        assert (entry.alive, entry.reason) == (False, "unreachable")

    @pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "[::ffff:169.254.169.254]", "[fe80::1]", "0.0.0.0"])
    async def test_what_backends_may_not_have_is_not_probed(self, scene: Scene, host: str) -> None:
        scene.prober.set_wanted(1, {"chat/b": Probe(f"http://{host}:9/health", "Bearer k", 0.1, 0.3)})
        entry = (await scene.until(lambda found: "chat/b" in found and found["chat/b"].alive is not None))["chat/b"]
        assert (entry.alive, entry.reason) == (False, "forbidden")

    async def test_a_certificate_that_is_not_trusted_is_not_alive(self, scene: Scene) -> None:
        async with Upstream(alive) as upstream:  # speaks no TLS at all
            scene.prober.set_wanted(1, {"chat/b": Probe(f"https://127.0.0.1:{upstream.port}/health", None, 0.1, 0.5)})
            entry = (await scene.until(lambda found: "chat/b" in found and found["chat/b"].alive is not None))["chat/b"]
            assert entry.alive is False

    async def test_one_failure_is_not_death_and_one_success_is_life(self, scene: Scene) -> None:
        script = [500, 200, 500, 500, 200]
        went: list[int] = []

        async def by_script(wire: Wire, seen: Seen) -> None:
            status = script[min(len(went), len(script) - 1)]
            went.append(status)
            await wire.answer({}, status)

        async with Upstream(by_script) as upstream:
            verdicts: list[bool | None] = []
            scene.prober.set_wanted(1, {"chat/b": Probe(f"{upstream.url}/models", "Bearer k", 0.3, 5)})
            while len(went) < 5 or verdicts[-1:] != [True]:
                found = await scene.until(lambda found: "chat/b" in found)
                if verdicts[-1:] != [found["chat/b"].alive]:
                    verdicts.append(found["chat/b"].alive)
                await asyncio.sleep(0.01)
            assert verdicts == [None, True, False, True]
            assert scene.changes == 4  # what is wanted, and three times another verdict
            assert {seen.headers["authorization"] for seen in upstream.seen} == {"Bearer k"}
            assert len({seen.connection for seen in upstream.seen}) == len(upstream.seen)

    async def test_equal_probes_are_one_and_what_is_not_wanted_ends(self, scene: Scene) -> None:
        async with Upstream(alive) as upstream:
            probe = Probe(f"{upstream.url}/models", None, 0.1, 0.2)
            scene.prober.set_wanted(1, {"a/b": probe, "c/d": probe})
            found = await scene.until(lambda found: found.keys() == {"a/b", "c/d"})
            assert found["a/b"] == found["c/d"]
            scene.prober.set_wanted(2, {"a/b": probe})
            await scene.until(lambda found: found.keys() == {"a/b"})
            scene.prober.set_wanted(3, {})
            async with asyncio.timeout(5):
                while scene.file.exists():
                    await asyncio.sleep(0.01)
            asked = len(upstream.seen)
            await asyncio.sleep(0.3)
            assert len(upstream.seen) <= asked + 1


def table(revision: int, board: HealthBoard, *ids: str) -> RouteTable:
    found = parse_document({"models": [{"id": "chat", "backends": [backend(id=name, model=name) for name in ids]}]})
    return build_table(found, revision, 1, lambda _: EchoBackend(), Timeouts(1, 1, 1, 1), {}, lambda *key: board.of(key))


def state(board: HealthBoard, found: RouteTable, now_s: float) -> list[str]:
    return [target.health.state(now_s) for target in found.routes["chat"].targets]


class TestProbeFile:
    def test_targets_are_told(self, tmp_path: Path) -> None:
        file, board = tmp_path / "probes.json", HealthBoard()
        reader, found = ProbeFile(file), table(7, board, "a", "b", "c")
        reader.follow(found, 100, 1_000_000)
        assert board.troubled == 0
        write_probes(file, 7, {"chat/a": Probed(False, 1_000_000, 10, 2, "503"), "chat/b": Probed(True, 1_000_000, 10, 2)})
        reader.follow(found, 100, 1_000_001)
        assert state(board, found, 100) == ["open", "closed", "closed"]
        verdicts = [target.health.verdict for target in found.routes["chat"].targets]
        assert [(v.alive(100), v.reason) for v in verdicts] == [(False, "503"), (True, ""), (None, "")]
        assert state(board, found, 100 + 31)[0] == "closed"  # said 1 s ago; 3 intervals and 2 s is how long it holds
        file.unlink()
        reader.follow(found, 102, 1_000_003)
        assert (state(board, found, 102)[0], board.troubled) == ("closed", 0)

    def test_an_old_file_says_nothing(self, tmp_path: Path) -> None:
        file, board = tmp_path / "probes.json", HealthBoard()
        found = table(7, board, "a")
        write_probes(file, 7, {"chat/a": Probed(False, 1_000_000, 10, 2, "503")})
        ProbeFile(file).follow(found, 100, 1_000_033)
        assert board.troubled == 0

    def test_names_of_another_revision_are_not_ours(self, tmp_path: Path) -> None:
        file, board = tmp_path / "probes.json", HealthBoard()
        reader, old, new = ProbeFile(file), table(7, board, "a"), table(8, board, "b", "a")
        write_probes(file, 7, {"chat/a": Probed(False, 1_000_000, 10, 2, "503")})
        reader.follow(new, 100, 1_000_000)
        assert board.troubled == 0
        reader.follow(old, 100, 1_000_000)
        assert state(board, new, 100) == ["closed", "open"]  # the same backend in both
        reader.follow(new, 101, 1_000_001)
        assert state(board, new, 101) == ["closed", "open"]
        write_probes(file, 8, {"chat/b": Probed(False, 1_000_001, 10, 2, "503")})
        reader.follow(new, 102, 1_000_001)
        assert state(board, new, 102) == ["open", "closed"]

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"revision": 1}', '{"revision": 1, "probes": {"a": 3}}', '{"probes": []}', "\0"])
    def test_what_cannot_be_read_says_nothing(self, tmp_path: Path, content: str) -> None:
        file, board = tmp_path / "probes.json", HealthBoard()
        file.write_text(content)
        ProbeFile(file).follow(table(1, board, "a"), 1, 1)
        assert board.troubled == 0

    def test_it_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "run" / "probes.json"
        write_probes(file, 1, {"a/b": Probed(None, 1, 10, 2)})
        assert file.stat().st_mode & 0o777 == 0o600
        assert json.loads(file.read_text())["revision"] == 1
        assert [path.name for path in file.parent.iterdir()] == ["probes.json"]


@pytest.mark.parametrize(
    ("host", "trusted", "alive_there"), [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("models.example", True, False)]
)
async def test_probes_check_certificates(tmp_path: Path, host: str, trusted: bool, alive_there: bool) -> None:
    authority = Authority(tmp_path)
    async with Upstream(alive, tls=authority.server_context("backend", host)) as upstream:
        file = tmp_path / "run" / "probes.json"
        prober = Prober(file, lambda: None, ca_file=authority.file if trusted else None, draw=lambda: 0.0)
        publishing = asyncio.create_task(prober.publish())
        prober.set_wanted(1, {"chat/b": Probe(f"https://127.0.0.1:{upstream.port}/health", None, 0.1, 1)})
        async with asyncio.timeout(10):
            while (found := read_probes(file)[1].get("chat/b")) is None or found.alive is None:
                await asyncio.sleep(0.01)
        assert found.alive is alive_there
        publishing.cancel()
        await prober.close()
