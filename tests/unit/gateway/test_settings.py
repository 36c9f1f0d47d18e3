"""Settings: whatever a home is called, its database lies in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from gateway.settings import Settings, SettingsError, load_settings


@pytest.mark.parametrize("name", ["home", "with space", "한글 ü", "what?", "50%20off", "a#b", "a:b@c", "x&y=z;"])
def test_the_database_lies_in_the_home_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    settings = Settings(home=tmp_path / name)
    assert make_url(settings.database).database == str(tmp_path / name / "gateway.sqlite3")


def test_an_empty_host_is_not_every_interface() -> None:
    assert Settings(host="").host == "127.0.0.1"


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_HOME", str(tmp_path))
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", ("*",)),
        ("", ()),
        ("https://App.example.com/, http://localhost:3000", ("https://app.example.com", "http://localhost:3000")),
        ("app://obsidian.md", ("app://obsidian.md",)),
    ],
)
def test_origins_are_read_as_browsers_write_them(monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]) -> None:
    monkeypatch.setenv("GATEWAY_CORS_ORIGINS", text)
    assert load_settings().cors_origins == origins


@pytest.mark.parametrize("text", ["app.example.com", "https://app.example.com/chat", "https://a b", "https://x?y", "https://u@x", "null"])
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GATEWAY_CORS_ORIGINS", f"https://fine.example,{text}")
    with pytest.raises(SettingsError, match=r"GATEWAY_CORS_ORIGINS.*is not an origin such as https://app\.example\.com"):
        load_settings()


def test_what_is_kept_of_logged_content_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads it has several copies of it in memory."""
    monkeypatch.setenv("GATEWAY_CONTENT_LOG_MAX_BYTES", "16000000")
    assert load_settings().content_log_max_bytes == 16_000_000
    monkeypatch.setenv("GATEWAY_CONTENT_LOG_MAX_BYTES", "16000001")
    with pytest.raises(SettingsError, match="GATEWAY_CONTENT_LOG_MAX_BYTES"):
        load_settings()


def test_trusted_proxies_are_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().trusted_proxies == ()
    monkeypatch.setenv("GATEWAY_TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8,::1")
    assert load_settings().trusted_proxies == ("127.0.0.1/32", "10.0.0.0/8", "::1/128")
    for text, words in (("10.0.0.1/8", "write 10.0.0.0/8"), ("proxy.example", "neither an address nor a network"), ("*", "neither")):
        monkeypatch.setenv("GATEWAY_TRUSTED_PROXIES", text)
        with pytest.raises(SettingsError, match=f"GATEWAY_TRUSTED_PROXIES.*{words}"):
            load_settings()
