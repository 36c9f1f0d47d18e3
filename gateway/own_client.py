"""The certificate that this installation's own processes show its servers where those ask clients for one (GATEWAY_TLS_CLIENT_CA_FILE).

Whoever starts the servers makes a new one, for itself, the keeper and `doctor`: nobody else's authority signs it, and nobody but the
owner of GATEWAY_HOME can read it. The servers trust it beside the authorities of the clients, and it can sign no other.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

FILE = "own-client.pem"
_LASTS = timedelta(days=3650)


def make(run_dir: Path) -> None:
    """Write certificate and key into the folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway: this installation itself")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + _LASTS)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
    text = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = run_dir / FILE
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(text)


def forget(run_dir: Path) -> None:
    (run_dir / FILE).unlink(missing_ok=True)


def context(run_dir: Path) -> ssl.SSLContext:
    """For connections to our own servers. Their certificate names the public host, not this address: it is not checked, and nothing secret
    may be sent."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if (run_dir / FILE).exists():
        made.load_cert_chain(run_dir / FILE)
    return made
