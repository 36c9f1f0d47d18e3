"""GATEWAY_SECRET_KEY: where it comes from, when it is refused, the keys derived from it, and the one before it.

It is never used itself: each purpose gets 32 bytes of its own by HKDF-SHA256, so that none can be computed from another.
While it is being replaced there are two: the new one encrypts, both open, until `gateway secrets rotate` has encrypted everything anew.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.store.errors import SecretKeyRefused

FILE_NAME = "secret.key"
PREVIOUS_FILE_NAME = "secret.key.previous"
STORED_SECRETS = "stored secrets"  # purpose: encrypting upstream keys and signing keys
CONTENTS = "logged contents"  # purpose: encrypting what was logged of requests and answers
_MIN_CHARS = 32
_MIN_DISTINCT = 10
_SAMPLE_WORDS = (
    "changeme",
    "change-me",
    "change_me",
    "example",
    "secretkey",
    "secret-key",
    "secret_key",
    "your-",
    "your_",
    "password",
    "insecure",
)


@dataclass(frozen=True, slots=True)
class SecretKeys:
    """`current` encrypts; what one of `previous` encrypted is still opened. None of them is in a repr."""

    current: str = field(repr=False)
    previous: tuple[str, ...] = field(default=(), repr=False)


def load_secret_keys(home: Path, configured: str = "", file: Path | None = None, previous: str = "", *, create: bool = False) -> SecretKeys:
    """`configured` if given, else the content of `file`, else that of `home/secret.key`, which is made where there is none (`create`).

    The one before it: as `load_previous` has it. Whether they are a database's is for `own_key` to say. Raises `SecretKeyRefused`.
    """
    if configured and file is not None:
        raise SecretKeyRefused("GATEWAY_SECRET_KEY and GATEWAY_SECRET_KEY_FILE are both set: leave one of them empty.")
    if file is not None:
        current = check_secret_key(_read(file, writable_only=True), f"GATEWAY_SECRET_KEY_FILE ({file})")
    elif configured or create:
        current = load_or_create_secret_key(home, configured)
    else:
        current = check_secret_key(_read(home / FILE_NAME), str(home / FILE_NAME))
    return SecretKeys(current, tuple(key for key in load_previous(home, previous) if key != current))


def load_previous(home: Path, previous: str = "") -> tuple[str, ...]:
    """`previous` if given, else the content of `home/secret.key.previous`, if that is there. Raises `SecretKeyRefused`."""
    if not previous and (home / PREVIOUS_FILE_NAME).exists():
        previous = _read(home / PREVIOUS_FILE_NAME)
    return (previous,) if previous else ()


def load_or_create_secret_key(home: Path, configured: str = "") -> str:
    """`configured` if given, else the content of `home/secret.key`, which is made (mode 0600) if there is none.

    Raises `SecretKeyRefused`. Safe from several processes at once: all get the same key.
    """
    if configured:
        return check_secret_key(configured, "GATEWAY_SECRET_KEY")
    path = home / FILE_NAME
    try:
        if not path.exists():
            _create(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    return check_secret_key(_read(path), str(path))


def check_secret_key(key: str, source: str) -> str:
    """`key`, unless it is short, monotonous or taken from a sample. `source` names it in the refusal."""
    if len(key) < _MIN_CHARS:
        raise SecretKeyRefused(
            f"{source} is too short: it needs at least {_MIN_CHARS} characters. `openssl rand -base64 48` makes a good one."
        )
    if len(set(key)) < _MIN_DISTINCT or any(word in key.lower() for word in _SAMPLE_WORDS):
        raise SecretKeyRefused(f"{source} looks like a sample, not like a secret. `openssl rand -base64 48` makes a good one.")
    return key


def derive(secret_key: str, purpose: str) -> bytes:
    """32 bytes for one purpose."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"gateway/v1/" + purpose.encode()).derive(secret_key.encode())


def fingerprint(secret_key: str) -> str:
    """Tells two keys apart and says nothing about either."""
    return hashlib.sha256(derive(secret_key, "fingerprint")).hexdigest()[:16]


def _read(path: Path, *, writable_only: bool = False) -> str:
    """The one line in a file that is for its owner alone; or, `writable_only`, that nobody else may write: secrets that are mounted into
    a container can often be read by all of the few users in there. Raises `SecretKeyRefused`.
    """
    try:
        if path.stat().st_mode & (0o022 if writable_only else 0o077):
            raise SecretKeyRefused(
                f"{path} can be {'written' if writable_only else 'read'} by other users of this machine: "
                f"run `chmod 600 {path}`, and consider making a new key."
            )
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> SecretKeyRefused:
    return SecretKeyRefused(f"The secret key in {path} cannot be read or made: {getattr(error, 'strerror', None) or 'not text'}.")


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)  # whole or not at all; the first process wins, the others read its key
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
