"""Certificate files: what cannot be used is one sentence; what changes is taken up, whole or not at all."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import own_client
from gateway.cli.output import CommandFailed
from gateway.cli.tls import ServerTls, check_upstream_ca
from gateway.settings import Settings
from tests.wire.authority import Authority

Files = tuple[Path, Path]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def _missing_cert(authority: Authority, files: Files) -> None:
    files[0].unlink()


def _missing_key(authority: Authority, files: Files) -> None:
    files[1].unlink()


def _folder(authority: Authority, files: Files) -> None:
    files[0].unlink()
    files[0].mkdir()


def _text(authority: Authority, files: Files) -> None:
    files[0].write_text("hello")


def _binary(authority: Authority, files: Files) -> None:
    files[1].write_bytes(os.urandom(500))


def _swapped(authority: Authority, files: Files) -> None:
    shutil.copyfile(files[1], files[0])


def _cut(authority: Authority, files: Files) -> None:
    files[0].write_bytes(files[0].read_bytes()[:200])


def _mismatch(authority: Authority, files: Files) -> None:
    shutil.copyfile(authority.issue("another")[1], files[1])


def _encrypted(authority: Authority, files: Files) -> None:
    shutil.copyfile(authority.issue("another", password=b"secret")[1], files[1])


FAULTS: list[tuple[Callable[[Authority, Files], None], str]] = [
    (_missing_cert, "GATEWAY_TLS_CERT_FILE.*gw.crt.*No such file"),
    (_missing_key, "GATEWAY_TLS_KEY_FILE.*gw.key.*No such file"),
    (_folder, "GATEWAY_TLS_CERT_FILE.*Is a directory"),
    (_text, "GATEWAY_TLS_CERT_FILE.*not hold a certificate"),
    (_binary, "GATEWAY_TLS_KEY_FILE.*not hold a private key"),
    (_swapped, "GATEWAY_TLS_CERT_FILE.*not hold a certificate"),
    (_cut, "cannot be used"),
    (_mismatch, "gw.key is not the key of the first certificate in .*gw.crt"),
    (_encrypted, "encrypted"),
]


@pytest.mark.parametrize(("spoil", "words"), FAULTS)
def test_files_that_cannot_be_used(authority: Authority, spoil: Callable[[Authority, Files], None], words: str) -> None:
    files = authority.issue("gw")
    spoil(authority, files)
    with pytest.raises(CommandFailed, match=words) as caught:
        ServerTls(*files)
    assert "\n" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)


@pytest.mark.parametrize(("spoil", "words"), FAULTS)
def test_a_bad_change_leaves_what_was(authority: Authority, spoil: Callable[[Authority, Files], None], words: str) -> None:
    files = authority.issue("gw")
    kept = [file.read_bytes() for file in files]
    tls = ServerTls(*files)
    spoil(authority, files)
    with pytest.raises(CommandFailed, match=words):
        tls.reload()
    assert _handshakes(tls, authority) == _serial(kept[0])
    assert not tls.reload()  # said once
    for file, content in zip(files, kept, strict=True):
        if file.is_dir():
            file.rmdir()
        file.write_bytes(content)
    assert tls.reload()


def test_a_good_change_is_in_force_on_the_live_context(authority: Authority) -> None:
    files = authority.issue("gw")
    tls = ServerTls(*files)
    before, first = tls.context, _handshakes(tls, authority)
    assert not tls.reload()
    for new, old in zip(authority.issue("next"), files, strict=True):
        new.replace(old)
    assert tls.reload()
    assert tls.context is before
    assert _handshakes(tls, authority) not in (None, first)


@pytest.mark.parametrize("given", ["tls_cert_file", "tls_key_file"])
def test_one_without_the_other(tmp_path: Path, given: str) -> None:
    with pytest.raises(CommandFailed, match=r"GATEWAY_TLS_CERT_FILE and GATEWAY_TLS_KEY_FILE"):
        ServerTls.of(Settings(home=tmp_path, **{given: tmp_path / "x"}))  # type: ignore[arg-type]  # one of two members


def test_none_is_plain_http(tmp_path: Path) -> None:
    assert ServerTls.of(Settings(home=tmp_path)) is None


def test_authorities_of_backends(authority: Authority, tmp_path: Path) -> None:
    check_upstream_ca(None)
    check_upstream_ca(authority.file)
    with pytest.raises(CommandFailed, match=r"GATEWAY_UPSTREAM_CA_FILE: .*none.pem cannot be read"):
        check_upstream_ca(tmp_path / "none.pem")
    for content in ("", "hello", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"):
        (tmp_path / "bad.pem").write_text(content)
        with pytest.raises(CommandFailed, match="does not hold certificates"):
            check_upstream_ca(tmp_path / "bad.pem")


class TestClientCertificates:
    """`ca` signs the server's certificate, `staff` those of the clients."""

    @pytest.fixture
    def staff(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path, "staff")

    def test_one_of_the_authority_is_needed(self, authority: Authority, staff: Authority) -> None:
        tls = ServerTls(*authority.issue("gw"), staff.file)
        assert _served(tls, authority.client_context(staff.issue("dana")))
        assert not _served(tls, authority.client_context())
        assert not _served(tls, authority.client_context(authority.issue("dana")))  # another authority, be it the server's own
        assert not _served(tls, authority.client_context(staff.issue("dana", expired=True)))

    def test_without_the_setting_none_is_asked_for(self, authority: Authority) -> None:
        assert _served(ServerTls(*authority.issue("gw")), authority.client_context())

    def test_changed_authorities_are_taken_up_and_old_ones_are_let_go(self, authority: Authority, staff: Authority, tmp_path: Path) -> None:
        file, after = tmp_path / "clients.pem", Authority(tmp_path, "after")
        shutil.copyfile(staff.file, file)
        tls = ServerTls(*authority.issue("gw"), file)
        before = authority.client_context(staff.issue("dana"))
        assert _served(tls, before)
        file.write_text(staff.file.read_text() + after.file.read_text())  # both, while clients move
        assert tls.reload()
        assert _served(tls, before)
        assert _served(tls, authority.client_context(after.issue("erin")))
        shutil.copyfile(after.file, file)
        assert tls.reload()
        assert not _served(tls, before)
        assert _served(tls, authority.client_context(after.issue("erin")))
        file.write_text("")
        with pytest.raises(CommandFailed, match=r"GATEWAY_TLS_CLIENT_CA_FILE: .*clients.pem does not hold certificates"):
            tls.reload()
        assert _served(tls, authority.client_context(after.issue("erin")))

    def test_sessions_are_not_resumed(self, authority: Authority, staff: Authority) -> None:
        """A resumed one would not show its certificate again."""
        tls = ServerTls(*authority.issue("gw"), staff.file)
        client = authority.client_context(staff.issue("dana"))
        assert _served(tls, client)
        found = _connect(tls, client)
        assert found is not None
        assert found.session is None or not found.session.has_ticket
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        assert not _served(tls, client)

    def test_this_installation_itself_is_let_in(self, authority: Authority, staff: Authority, tmp_path: Path) -> None:
        own_client.make(tmp_path)
        file = tmp_path / own_client.FILE
        assert file.stat().st_mode & 0o777 == 0o600
        tls = ServerTls(*authority.issue("gw"), staff.file, file)
        assert _served(tls, own_client.context(tmp_path))
        own_client.make(tmp_path)  # another start
        assert not _served(tls, own_client.context(tmp_path))
        assert _served(ServerTls(*authority.issue("gw"), staff.file, file), own_client.context(tmp_path))
        own_client.forget(tmp_path)
        assert not _served(tls, own_client.context(tmp_path))

    def test_it_signs_nobody_else(self, authority: Authority, staff: Authority, tmp_path: Path) -> None:
        own_client.make(tmp_path)
        pem = (tmp_path / own_client.FILE).read_bytes()
        made = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        other = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "forged")])
        builder = x509.CertificateBuilder(made.subject, name, other.public_key(), 7, made.not_valid_before_utc, made.not_valid_after_utc)
        forged = builder.sign(key, hashes.SHA256())
        private = other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (tmp_path / "forged.pem").write_bytes(private + forged.public_bytes(serialization.Encoding.PEM) + pem)
        client = authority.client_context()
        client.load_cert_chain(tmp_path / "forged.pem")
        assert not _served(ServerTls(*authority.issue("gw"), staff.file, tmp_path / own_client.FILE), client)

    @pytest.mark.parametrize("content", [None, "", "hello"])
    def test_files_that_cannot_be_used(self, authority: Authority, tmp_path: Path, content: str | None) -> None:
        file = tmp_path / "clients.pem"
        if content is not None:
            file.write_text(content)
        with pytest.raises(CommandFailed, match=r"^GATEWAY_TLS_CLIENT_CA_FILE: .*clients.pem (cannot be read|does not hold)"):
            ServerTls(*authority.issue("gw"), file)

    def test_plain_http_knows_no_certificates(self, tmp_path: Path) -> None:
        with pytest.raises(CommandFailed, match="GATEWAY_TLS_CLIENT_CA_FILE needs"):
            ServerTls.of(Settings(home=tmp_path, tls_client_ca_file=tmp_path / "x"))


def _connect(tls: ServerTls, context: ssl.SSLContext) -> ssl.SSLObject | None:
    """The client's side of a connection over which the server has answered; None where it refused."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = tls.context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (client, server, client, server, client):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        server.write(b"hello")
        assert client.read(5) == b"hello"
    except ssl.SSLError:
        return None
    return client


def _served(tls: ServerTls, context: ssl.SSLContext) -> bool:
    return _connect(tls, context) is not None


def _serial(pem: bytes) -> str:
    return ssl.PEM_cert_to_DER_cert(pem.decode()).hex()


def _handshakes(tls: ServerTls, authority: Authority) -> str | None:
    """The certificate that a client sees, without a socket."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client_context().wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = tls.context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    der = client.getpeercert(binary_form=True)
    return der.hex() if der else None


SETTINGS = {
    "GATEWAY_TLS_CERT_FILE": {"GATEWAY_TLS_CERT_FILE": "none.crt", "GATEWAY_TLS_KEY_FILE": "none.key"},
    "GATEWAY_TLS_KEY_FILE": {"GATEWAY_TLS_KEY_FILE": "none.key"},
    "GATEWAY_UPSTREAM_CA_FILE": {"GATEWAY_UPSTREAM_CA_FILE": "none.pem"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_serve_and_doctor_say_so(gateway: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for setting, value in SETTINGS[name].items():
        monkeypatch.setenv(setting, str(tmp_path / value))
    typed = gateway("serve")
    assert typed.code == 1
    assert name in typed.err
    assert typed.err.count("\n") == 1
    assert not (tmp_path / "home").exists()  # nothing was made for a start that could not be
    wrong = [finding for finding in gateway("doctor", "--json").json if finding["check"] == "tls"]
    assert [finding["ok"] for finding in wrong] == [False]
    assert name in wrong[0]["message"]
