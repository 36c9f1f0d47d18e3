"""The gateway's own certificate: read at start, and again whenever the files change.

New connections take what the files hold then; connections that stand keep what they began with. Files are seldom replaced both at once:
while chain and key do not belong together, what was read last stays in force.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from gateway.cli.output import CommandFailed, fail
from gateway.settings import Settings

logger = structlog.get_logger(__name__)

LOOK_S = 1.0


class ServerTls:
    """`context` is what the listening sockets use. Raises `CommandFailed` where the files cannot be used."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._stamp = self._look()
        _check(cert_file, key_file)
        self.context = _empty_context()
        self.context.load_cert_chain(cert_file, key_file, _no_password)

    @classmethod
    def of(cls, settings: Settings) -> ServerTls | None:
        """None where the gateway speaks plain HTTP."""
        if settings.tls_cert_file is None and settings.tls_key_file is None:
            return None
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            fail("GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE go together: set both, or neither for plain HTTP.")
        return cls(settings.tls_cert_file, settings.tls_key_file)

    def reload(self) -> bool:
        """Take up changed files; whether there were any. `CommandFailed` where they cannot be used: the old ones stay in force."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        _check(self._cert_file, self._key_file)
        # on the live context, which is what the listening sockets hold; only after the check, as half a change would break every handshake
        self.context.load_cert_chain(self._cert_file, self._key_file, _no_password)
        return True

    async def follow(self) -> None:
        """Look for changes until cancelled. Each state of the files that cannot be used is logged once."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self.reload():
                    logger.info("tls files reloaded")
            except CommandFailed as fault:
                logger.warning("tls files changed but cannot be used; what was read last stays in force", fault=str(fault))
            except OSError as error:  # replaced between the check and the loading
                logger.warning("tls files changed while they were read", fault=type(error).__name__)
                self._stamp = ()

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What tells one state of the files from another."""
        return tuple(_stamp(file) for file in (self._cert_file, self._key_file))


def check_upstream_ca(file: Path | None) -> None:
    """`CommandFailed` where GATEWAY_UPSTREAM_CA_FILE cannot be used."""
    if file is None:
        return
    text = _read("GATEWAY_UPSTREAM_CA_FILE", file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        fail(f"GATEWAY_UPSTREAM_CA_FILE: {file} does not hold certificates in PEM form.")


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _empty_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _check(cert_file: Path, key_file: Path) -> None:
    """Try the files on a context of their own: loading replaces the certificate before it looks at the key."""
    cert, key = _read("GATEWAY_TLS_CERT_FILE", cert_file), _read("GATEWAY_TLS_KEY_FILE", key_file)
    if "-----BEGIN CERTIFICATE-----" not in cert:
        fail(f"GATEWAY_TLS_CERT_FILE: {cert_file} does not hold a certificate in PEM form.")
    if "PRIVATE KEY-----" not in key:
        fail(f"GATEWAY_TLS_KEY_FILE: {key_file} does not hold a private key in PEM form.")
    if "ENCRYPTED" in key:
        fail(f"GATEWAY_TLS_KEY_FILE: the key in {key_file} is encrypted; store it without a password, readable by the gateway alone.")
    try:
        _empty_context().load_cert_chain(cert_file, key_file, _no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            fail(f"GATEWAY_TLS_KEY_FILE: the key in {key_file} is not the key of the first certificate in {cert_file}.")
        fail(f"GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE: {cert_file} and {key_file} cannot be used ({error.reason}).")


def _read(name: str, file: Path) -> str:
    try:
        return file.read_text("ascii", "replace")
    except OSError as error:
        fail(f"{name}: {file} cannot be read ({error.strerror}).")


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    return ""
