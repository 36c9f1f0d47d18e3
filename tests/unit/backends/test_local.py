"""The supervisor of local models with a fake worker program, the state file, and the backend that reads it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from backends.base import Call, Exchange, Headers, Sink
from backends.errors import BackendError, BrokeOff, ConnectFailed, MaybeSent, NotReady, StaleConnection
from backends.local import LocalBackend, LocalModels, LocalSpec, LocalState, ModelState, PathRefused, locate, path_faults
from backends.local.models import Patience
from backends.local.process import Program
from backends.local.state import write_state
from tests.gateway_process import free_port
from tests.models import pickle_only, tiny_chat, tiny_encoder, without_weights

FAKE = Program(command=(sys.executable, str(Path(__file__).with_name("fake_worker.py"))))
QUICK = Patience(first_backoff_s=0.05, most_backoff_s=0.2, retry_failed_s=30, look_at_folder_s=0.02, kill_after_s=0.5)


class House:
    """A models folder, a supervisor over it, and the state as a serving process sees it."""

    def __init__(self, root: Path) -> None:
        self.models_dir = root / "models"
        self.models_dir.mkdir()
        self.state = LocalState(root / "run" / "local.json")
        self.file = root / "run" / "local.json"
        self.history: list[tuple[str, str]] = []
        self._changed = asyncio.Event()
        self.models = LocalModels(self.file, self._on_change, self.models_dir, None, program=FAKE, patience=QUICK)

    def model(self, name: str, behaviour: str) -> Path:
        folder = tiny_chat(self.models_dir / name)
        (folder / "behaviour").write_text(behaviour)
        return folder

    def _on_change(self) -> None:
        self.state.reload()
        self.history += [(path, entry.state) for path, entry in self.state.models.items()]
        self._changed.set()

    async def until(self, name: str, wanted: Callable[[ModelState], bool]) -> ModelState:
        async with asyncio.timeout(20):
            while True:
                entry = self.state.get(name)
                if entry is not None and wanted(entry):
                    return entry
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    built = House(tmp_path)
    yield built
    await built.models.close()


def is_state(name: str) -> Callable[[ModelState], bool]:
    return lambda entry: entry.state == name


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_starts_reports_and_stops(house: House) -> None:
    folder = house.model("one", "ready")
    await house.models.set_wanted([LocalSpec("one")])
    entry = await house.until("one", is_state("ready"))
    assert entry.port and entry.pid and entry.token and entry.task == "chat" and entry.max_model_len == 512
    assert [state for _, state in house.history][-2:] == ["loading", "ready"]
    assert stat.S_IMODE(house.file.stat().st_mode) == 0o600
    assert "token" not in entry.public()
    passed = json.loads((folder / "environment.json").read_text())
    assert passed["MODEL_WORKER_TOKEN"] == entry.token
    await house.models.set_wanted([])
    assert not alive(entry.pid)
    assert json.loads(house.file.read_text()) == {}


async def test_the_gateways_secrets_do_not_reach_the_worker(house: House, request: pytest.FixtureRequest) -> None:
    os.environ["GATEWAY_SECRET_KEY"] = "not for workers"
    request.addfinalizer(lambda: os.environ.pop("GATEWAY_SECRET_KEY", None))
    folder = house.model("one", "ready")
    await house.models.set_wanted([LocalSpec("one")])
    await house.until("one", is_state("ready"))
    passed = json.loads((folder / "environment.json").read_text())
    assert not [name for name in passed if name.startswith("GATEWAY_")]


async def test_a_worker_that_is_killed_is_started_again(house: House) -> None:
    house.model("one", "ready")
    await house.models.set_wanted([LocalSpec("one")])
    first = await house.until("one", is_state("ready"))
    os.kill(first.pid or 0, signal.SIGKILL)
    down = await house.until("one", is_state("backoff"))
    assert "SIGKILL" in (down.reason or "") and down.port is None
    again = await house.until("one", is_state("ready"))
    assert again.pid != first.pid and again.restarts == 1 and again.token != first.token


async def test_backoff_doubles_up_to_its_limit(house: House) -> None:
    house.model("one", "die")
    begun_s = time.monotonic()
    await house.models.set_wanted([LocalSpec("one")])
    entry = await house.until("one", lambda entry: entry.restarts >= 4)
    assert time.monotonic() - begun_s >= 0.05 + 0.1 + 0.2 + 0.2
    assert entry.restarts == 4


async def test_a_fault_is_failed_until_the_folder_changes(house: House) -> None:
    folder = house.model("one", "fault")
    other = house.model("two", "ready")
    await house.models.set_wanted([LocalSpec("one"), LocalSpec("two")])
    entry = await house.until("one", is_state("failed"))
    assert entry.reason == "weights are missing" and entry.settled
    await house.until("two", is_state("ready"))
    (folder / "behaviour").write_text("ready")
    await house.until("one", is_state("ready"))
    assert other.exists()


async def test_a_broken_folder_is_failed_without_starting_anything(house: House) -> None:
    pickle_only(house.models_dir / "pickled")
    await house.models.set_wanted([LocalSpec("pickled"), LocalSpec("absent")])
    pickled = await house.until("pickled", is_state("failed"))
    absent = await house.until("absent", is_state("failed"))
    assert "pytorch_model.bin is a pickle" in (pickled.reason or "")
    assert "absent" in (absent.reason or "") and absent.restarts == 0
    tiny_chat(house.models_dir / "absent")
    (house.models_dir / "absent" / "behaviour").write_text("ready")
    await house.until("absent", is_state("ready"))


async def test_a_wanted_port_is_used_and_a_taken_one_is_named(house: House) -> None:
    house.model("one", "ready")
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        await house.models.set_wanted([LocalSpec("one", port)])
        entry = await house.until("one", is_state("backoff"))
        assert str(port) in (entry.reason or "")
    assert (await house.until("one", is_state("ready"))).port == port


async def test_unchanged_models_are_left_alone(house: House) -> None:
    house.model("one", "ready")
    house.model("two", "ready")
    await house.models.set_wanted([LocalSpec("one")])
    first = await house.until("one", is_state("ready"))
    await house.models.set_wanted([LocalSpec("one"), LocalSpec("two")])
    await house.until("two", is_state("ready"))
    assert house.state.get("one") is first


async def test_stubborn_workers_are_killed(house: House) -> None:
    house.model("one", "stubborn")
    await house.models.set_wanted([LocalSpec("one")])
    entry = await house.until("one", is_state("ready"))
    begun_s = time.monotonic()
    await house.models.close()
    assert not alive(entry.pid or 0)
    assert 0.5 <= time.monotonic() - begun_s < 4


def test_where_a_path_leads(tmp_path: Path) -> None:
    models_dir, shipped, elsewhere = tmp_path / "models", tmp_path / "shipped", tmp_path / "elsewhere"
    for folder in (models_dir, elsewhere):
        folder.mkdir()
    tiny_chat(shipped / "demo-chat")
    tiny_chat(models_dir / "team" / "chat")
    tiny_chat(elsewhere / "chat")
    (models_dir / "linked").symlink_to(elsewhere / "chat")
    tiny_chat(models_dir / "half")
    (models_dir / "half" / "model.safetensors").unlink()
    (models_dir / "half" / "model.safetensors").symlink_to(elsewhere / "chat" / "model.safetensors")

    def found(path: str, hub: bool = False, absolute: bool = False) -> str:
        return locate(path, models_dir, shipped, hub=hub, absolute_allowed=absolute).argument

    assert found("team/chat") == str(models_dir / "team" / "chat")
    assert found("demo-chat") == str(shipped / "demo-chat")
    assert found("org/model", hub=True) == "org/model"
    assert found(str(elsewhere / "chat"), absolute=True) == str(elsewhere / "chat")
    for refused in (
        "../elsewhere/chat",
        "team/../../elsewhere/chat",
        "",
        "~/chat",
        "a\0b",
        "linked",
        "half",
        str(elsewhere / "chat"),
        "org/model",
    ):
        with pytest.raises(PathRefused):
            found(refused)
    with pytest.raises(PathRefused):
        found("a/b/c", hub=True)


def test_faults_of_a_folder_name_the_file(tmp_path: Path) -> None:
    def faults(name: str) -> list[str]:
        return path_faults(name, tmp_path, None, hub=False, absolute_allowed=False)

    assert faults(tiny_chat(tmp_path / "chat").name) == []
    assert faults(tiny_encoder(tmp_path / "encoder").name) == []
    assert "pytorch_model.bin is a pickle" in faults(pickle_only(tmp_path / "pickle").name)[0]
    assert "model.safetensors is missing" in faults(without_weights(tmp_path / "bare").name)[0]
    assert "no model folder" in faults("absent")[0]
    torn = tiny_chat(tmp_path / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    assert "model.safetensors is incomplete" in faults("torn")[0]
    sharded = tiny_chat(tmp_path / "sharded")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in faults("sharded")[0]
    (tiny_chat(tmp_path / "json") / "config.json").write_text("{")
    assert "config.json is not valid JSON" in faults("json")[0]


class Told:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.errors: list[BackendError] = []
        self.data: list[bytes] = []

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_data(self, data: bytes) -> None:
        self.data.append(data)

    def on_end(self, by_close: bool) -> None: ...

    def on_error(self, error: BackendError) -> None:
        self.errors.append(error)


class FakePool:
    """A pool whose exchanges end with `error`, or give one piece."""

    def __init__(self, base_url: str, authorization: str | None) -> None:
        self.base_url = base_url
        self.authorization = authorization
        self.closed = False
        self.error: BackendError | None = None

    def open(self) -> Exchange:
        return FakeExchange(self.error)

    async def close(self) -> None:
        self.closed = True


class FakeExchange:
    connect_ms: float | None = None

    def __init__(self, error: BackendError | None) -> None:
        self._error = error

    def start(self, call: Call, sink: Sink) -> None:
        if self._error is not None:
            sink.on_error(self._error)
        else:
            sink.on_data(b"piece")

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...


class Serving:
    """A backend with its state file and the pools it has opened."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.state = LocalState(file)
        self.pools: list[FakePool] = []
        self.backend = LocalBackend("m", self.state, self._open)

    def _open(self, base_url: str, authorization: str | None) -> FakePool:
        self.pools.append(FakePool(base_url, authorization))
        return self.pools[-1]

    def publish(self, entry: ModelState) -> None:
        write_state(self.file, {"m": entry})
        self.state.reload()

    def call(self) -> Told:
        told = Told()
        self.backend.open().start(Call("m", "chat", "/chat/completions", b"{}", (), 1.0), told)
        return told


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    return Serving(tmp_path / "local.json")


@pytest.mark.parametrize(("state", "reason", "retry_s"), [("loading", "loading", 2), ("backoff", "loading", 2), ("failed", "failed", 30)])
def test_not_ready_is_told_at_once(serving: Serving, state: str, reason: str, retry_s: float) -> None:
    assert isinstance(serving.call().errors[0], NotReady)  # nothing known at all
    serving.publish(ModelState(state, 1.0, port=1))
    assert not serving.backend.ready
    (error,) = serving.call().errors
    assert isinstance(error, NotReady) and (error.reason, error.retry_after_s) == (reason, retry_s)


async def test_calls_go_to_the_worker_in_force(serving: Serving) -> None:
    serving.publish(ModelState("ready", 1.0, port=1111, token="secret"))
    assert serving.backend.ready
    assert serving.call().data == [b"piece"]
    serving.state.reload()
    serving.call()
    assert [(pool.base_url, pool.authorization) for pool in serving.pools] == [("http://127.0.0.1:1111/v1", "Bearer secret")]
    serving.publish(ModelState("ready", 2.0, 1, port=2222, token="other"))
    serving.call()
    await serving.backend.close()
    assert serving.pools[1].base_url == "http://127.0.0.1:2222/v1"
    assert all(pool.closed for pool in serving.pools)


@pytest.mark.parametrize(
    ("error", "heard"),
    [(ConnectFailed(), NotReady), (MaybeSent(), NotReady), (StaleConnection(), StaleConnection), (BrokeOff(), BrokeOff)],
)
async def test_a_worker_that_died_just_now_is_not_ready(serving: Serving, error: BackendError, heard: type[BackendError]) -> None:
    serving.publish(ModelState("ready", 1.0, port=1111, token="secret"))
    serving.call()
    serving.pools[0].error = error
    assert type(serving.call().errors[0]) is heard
    await serving.backend.close()


def test_a_torn_or_strange_state_file_means_nothing_is_known(tmp_path: Path) -> None:
    file = tmp_path / "local.json"
    state = LocalState(file)
    for content in ("", "[1]", '{"m": 3}', '{"m": {"port": 1}}'):
        file.write_text(content)
        state.reload()
        assert state.get("m") is None
