"""The gateway's own certificate, and whose certificates its clients must have: read at start, and again whenever the files change.

New connections take what the files hold then; connections that stand keep what they began with. Files are seldom replaced all at once:
while they do not belong together, what was read last stays in force.

With GATEWAY_TLS_CLIENT_CA_FILE a client without a certificate of one of these authorities gets no connection. TLS is 1.3 then and
sessions are not resumed: a resumed one would not be verified again, and outlive the authority that was taken away.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from gateway import own_client
from gateway.cli.output import CommandFailed, fail
from gateway.settings import Settings

logger = structlog.get_logger(__name__)

LOOK_S = 1.0


class ServerTls:
    """`context` is what the listening sockets use. Raises `CommandFailed` where the files cannot be used.

    `client_ca_file`: authorities of the clients; `own_client_file`: the certificate of this installation itself, taken beside theirs where
    it exists.
    """

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None = None, own_client_file: Path | None = None) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._own_client_file = own_client_file
        self._stamp = self._look()
        self._current = self.context = self._read_all()
        # What a context trusts can be added to and never taken back, so each connection is moved to the newest one as its handshake begins.
        self.context.sni_callback = self._present

    @classmethod
    def of(cls, settings: Settings) -> ServerTls | None:
        """None where the gateway speaks plain HTTP."""
        if settings.tls_cert_file is None and settings.tls_key_file is None:
            if settings.tls_client_ca_file is not None:
                fail("GATEWAY_TLS_CLIENT_CA_FILE needs GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE: plain HTTP knows no certificates.")
            return None
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            fail("GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE go together: set both, or neither for plain HTTP.")
        return cls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file, settings.run_dir / own_client.FILE)

    def reload(self) -> bool:
        """Take up changed files; whether there were any. `CommandFailed` where they cannot be used: the old ones stay in force."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self._current = self._read_all()
        return True

    def _present(self, connection: ssl.SSLObject, _name: str | None, _listening: ssl.SSLContext) -> None:
        """OpenSSL calls it for every handshake, whether or not the client names a host."""
        connection.context = self._current

    def _read_all(self) -> ssl.SSLContext:
        _check_texts(self._cert_file, self._key_file)
        context = _empty_context()
        try:
            context.load_cert_chain(self._cert_file, self._key_file, _no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                fail(f"GATEWAY_TLS_KEY_FILE: the key in {self._key_file} is not the key of the first certificate in {self._cert_file}.")
            names = "GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE"
            fail(f"{names}: {self._cert_file} and {self._key_file} cannot be used ({error.reason}).")
        if self._client_ca_file is not None:
            _trust("GATEWAY_TLS_CLIENT_CA_FILE", self._client_ca_file, context)
            if self._own_client_file is not None and self._own_client_file.exists():
                context.load_verify_locations(self._own_client_file)
            context.verify_mode = ssl.CERT_REQUIRED
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
        return context

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
        files = (self._cert_file, self._key_file, self._client_ca_file)
        return tuple(_stamp(file) for file in files if file is not None)


def check_upstream_ca(file: Path | None) -> None:
    """`CommandFailed` where GATEWAY_UPSTREAM_CA_FILE cannot be used."""
    if file is None:
        return
    _trust("GATEWAY_UPSTREAM_CA_FILE", file, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def _trust(name: str, file: Path, context: ssl.SSLContext) -> None:
    try:
        context.load_verify_locations(cadata=_read(name, file))
    except (ssl.SSLError, ValueError):
        fail(f"{name}: {file} does not hold certificates in PEM form.")


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


def _check_texts(cert_file: Path, key_file: Path) -> None:
    """What OpenSSL would say in words that help nobody."""
    cert, key = _read("GATEWAY_TLS_CERT_FILE", cert_file), _read("GATEWAY_TLS_KEY_FILE", key_file)
    if "-----BEGIN CERTIFICATE-----" not in cert:
        fail(f"GATEWAY_TLS_CERT_FILE: {cert_file} does not hold a certificate in PEM form.")
    if "PRIVATE KEY-----" not in key:
        fail(f"GATEWAY_TLS_KEY_FILE: {key_file} does not hold a private key in PEM form.")
    if "ENCRYPTED" in key:
        fail(f"GATEWAY_TLS_KEY_FILE: the key in {key_file} is encrypted; store it without a password, readable by the gateway alone.")


def _read(name: str, file: Path) -> str:
    try:
        return file.read_text("ascii", "replace")
    except OSError as error:
        fail(f"{name}: {file} cannot be read ({error.strerror}).")


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    return ""
