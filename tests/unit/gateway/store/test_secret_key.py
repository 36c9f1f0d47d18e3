from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from gateway.store.errors import SecretKeyRefused
from gateway.store.secret_key import (
    FILE_NAME,
    PREVIOUS_FILE_NAME,
    SecretKeys,
    derive,
    fingerprint,
    load_or_create_secret_key,
    load_secret_keys,
)

GOOD = "k3JwS0p9vQx7ZbN2mT5yHcR8dLfA1gUeXoWiBqVz"
OTHER = "Zq8Wm2Xc5Vn7Bk4Lp9Rt3Hy6Jf1Gd0SaQeUoIyTr"


def test_it_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    key = load_or_create_secret_key(home)
    assert len(key) >= 64
    assert stat.S_IMODE((home / FILE_NAME).stat().st_mode) == 0o600
    assert load_or_create_secret_key(home) == key
    assert [p.name for p in home.iterdir()] == [FILE_NAME]


def test_the_configured_one_comes_first_and_writes_nothing(tmp_path: Path) -> None:
    assert load_or_create_secret_key(tmp_path, GOOD) == GOOD
    assert list(tmp_path.iterdir()) == []


def test_several_at_once_get_the_same(tmp_path: Path) -> None:
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.append(load_or_create_secret_key(tmp_path / "home"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


@pytest.mark.parametrize(
    "key",
    [
        "hunter2-hunter2",
        GOOD[:31],
        "x" * 64,
        "0123456789" * 4 + "changeme",
        "your-secret-goes-here-0123456789abcdef",
        "ChangeMe-please-0123456789-abcdefgh",
    ],
)
def test_short_and_sample_keys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(SecretKeyRefused) as refused:
        load_or_create_secret_key(tmp_path, key)
    assert "GATEWAY_SECRET_KEY" in str(refused.value)
    assert key not in str(refused.value)
    (tmp_path / FILE_NAME).write_text(key)
    (tmp_path / FILE_NAME).chmod(0o600)
    with pytest.raises(SecretKeyRefused):
        load_or_create_secret_key(tmp_path)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_or_create_secret_key(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o640)
    with pytest.raises(SecretKeyRefused, match="chmod 600"):
        load_or_create_secret_key(tmp_path)


def test_a_home_that_is_a_file_is_one_plain_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(SecretKeyRefused, match=r"secret\.key"):
        load_or_create_secret_key(tmp_path / "home")


def test_each_purpose_has_its_own_key() -> None:
    assert len(derive(GOOD, "a")) == 32
    assert derive(GOOD, "a") == derive(GOOD, "a")
    assert len({derive(GOOD, "a"), derive(GOOD, "b"), derive(GOOD + "x", "a"), GOOD.encode()}) == 4
    assert fingerprint(GOOD) != fingerprint(GOOD + "x")


def test_one_in_a_file_elsewhere(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "mounted"
    file.write_text(f"{GOOD}\n")
    file.chmod(0o444)  # as containers mount secrets
    assert load_secret_keys(home, file=file) == SecretKeys(GOOD)
    assert not home.exists()
    with pytest.raises(SecretKeyRefused, match="both set"):
        load_secret_keys(home, OTHER, file)
    file.chmod(0o446)
    with pytest.raises(SecretKeyRefused, match="written by other users"):
        load_secret_keys(home, file=file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(SecretKeyRefused, match="GATEWAY_SECRET_KEY_FILE"):
        load_secret_keys(home, file=file)
    with pytest.raises(SecretKeyRefused, match="cannot be read"):  # never made: somebody meant another place
        load_secret_keys(home, file=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_one_before_it(tmp_path: Path) -> None:
    assert load_secret_keys(tmp_path, GOOD).previous == ()
    assert load_secret_keys(tmp_path, GOOD, previous=GOOD).previous == ()
    assert load_secret_keys(tmp_path, GOOD, previous=OTHER) == SecretKeys(GOOD, (OTHER,))
    path = tmp_path / PREVIOUS_FILE_NAME
    path.write_text(f"{OTHER}\n")
    path.chmod(0o600)
    assert load_secret_keys(tmp_path, GOOD) == SecretKeys(GOOD, (OTHER,))
    path.chmod(0o644)
    with pytest.raises(SecretKeyRefused, match="chmod 600"):
        load_secret_keys(tmp_path, GOOD)
    assert GOOD not in repr(load_secret_keys(tmp_path, GOOD, previous=OTHER))
    assert OTHER not in repr(load_secret_keys(tmp_path, GOOD, previous=OTHER))
