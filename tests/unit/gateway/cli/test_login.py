"""The parts of `gateway login` that need no gateway: its file, its mailbox, the addresses it takes. The whole is in tests/live."""

from __future__ import annotations

import http.client
import socket
import threading
from pathlib import Path

import pytest

from gateway.cli.login_file import LoginFile, SavedLogin
from gateway.cli.loopback import Mailbox, listening
from gateway.cli.output import CommandFailed
from gateway.cli.remote import Remote

LOGIN = SavedLogin("https://gw.example.com", "dana@example.com", "access", "refresh", 1.5)


class TestTheFile:
    def test_it_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        file = LoginFile(tmp_path / "home")
        file.write(LOGIN)
        assert file.read() == LOGIN
        file.path.chmod(0o644)
        file.write(LOGIN)  # replaced, not written into
        assert file.path.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
        assert [path.name for path in (tmp_path / "home").iterdir()] == ["login.json"]
        file.delete()
        file.delete()

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_one_that_others_can_read_is_not_used(self, tmp_path: Path, mode: int) -> None:
        file = LoginFile(tmp_path)
        file.write(LOGIN)
        file.path.chmod(mode)
        with pytest.raises(CommandFailed, match="other users"):
            file.read()

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": 1, "more": 2}', "null"])
    def test_damage_is_said(self, tmp_path: Path, content: str) -> None:
        file = LoginFile(tmp_path)
        file.path.write_text(content)
        file.path.chmod(0o600)
        with pytest.raises(CommandFailed, match="damaged"):
            file.read()

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(CommandFailed, match="not logged in"):
            LoginFile(tmp_path).read()

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        inside, order = threading.Event(), []

        def other() -> None:
            with LoginFile(tmp_path).alone():
                order.append("other")

        with LoginFile(tmp_path).alone():
            thread = threading.Thread(target=lambda: (inside.set(), other()))
            thread.start()
            inside.wait()
            thread.join(0.2)
            order.append("first")
        thread.join(5)
        assert order == ["first", "other"]

    def test_no_token_is_shown(self) -> None:
        assert "access'" not in repr(LOGIN) and "refresh'" not in repr(LOGIN)


class TestTheMailbox:
    def test_only_the_right_state_brings_a_code(self) -> None:
        mailbox = Mailbox("right")
        for wrong in (
            "/callback?code=x&state=wrong", "/callback?code=x", "/callback?state=right", "/callback?code=&state=right",
            "/?code=x&state=right",
            "/callback?code=x&state=right&code=y", "/callback?code=x&state=right&state=right", "/callback?code=x&state=%ff", "", "nonsense",
        ):  # fmt: skip
            assert not mailbox.offer(wrong), wrong
        with pytest.raises(CommandFailed, match="in time"):
            mailbox.wait(0.01)
        assert mailbox.offer("http://127.0.0.1:5000/callback?code=c%2Bd&state=right")
        assert mailbox.wait(1) == "c+d"

    def test_it_listens_on_this_machine_alone_and_to_everybody_at_once(self) -> None:
        with listening("right") as mailbox:
            with socket.create_connection(("127.0.0.1", mailbox.port)):  # who says nothing holds up nobody
                connection = http.client.HTTPConnection("127.0.0.1", mailbox.port, timeout=5)
                connection.request("GET", "/callback?code=x&state=wrong")
                assert connection.getresponse().status == 400
                connection = http.client.HTTPConnection("127.0.0.1", mailbox.port, timeout=5)
                connection.request("GET", "/callback?code=good&state=right")
                answer = connection.getresponse()
                assert answer.status == 200
                assert answer.headers["referrer-policy"] == "no-referrer"
                assert b"good" not in answer.read()
            assert mailbox.wait(1) == "good"
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", mailbox.port), timeout=1)


class TestAddresses:
    @pytest.mark.parametrize("url", ["https://gw.example.com", "http://localhost:8000", "http://127.0.0.1:8000/", "http://[::1]:8000"])
    def test_taken(self, url: str) -> None:
        assert Remote(url).url == url.rstrip("/")

    @pytest.mark.parametrize(
        "url",
        ["http://gw.example.com", "http://127.0.0.1.example.com", "gw.example.com", "https://gw/ui", "https://a@gw", "file:///etc", ""],
    )
    def test_not_taken(self, url: str) -> None:
        with pytest.raises(CommandFailed):
            Remote(url)

    def test_http_only_if_somebody_says_so(self) -> None:
        assert Remote("http://gw.example.com", plain_http=True).url == "http://gw.example.com"

    def test_a_file_of_authorities_that_is_none(self, tmp_path: Path) -> None:
        for name in ("absent", "empty"):
            (tmp_path / "empty").touch()
            with pytest.raises(CommandFailed, match="--ca-file"):
                Remote("https://gw.example.com", ca_file=str(tmp_path / name))
