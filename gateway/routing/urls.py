"""Which base URLs a custom backend may have.

Administrators choose these URLs, so private addresses are fine; what a cloud host hands its credentials out on is not. The rule is
about the text, by `auth.address.forbidden_address`: a name that later resolves to such an address is refused when it is connected to.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from auth.address import forbidden_address

_METADATA_NAMES = frozenset({
    "metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal", "metadata.tencentyun.com",
})  # fmt: skip
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def normal_base_url(text: str, *, allow_link_local: bool = False) -> str:
    """The URL without a trailing slash and with a lower-case scheme and host; `ValueError` says what is wrong with it."""
    if any(c.isspace() or not c.isprintable() or c in '\\"<>^`{|}' for c in text) or not text.isascii():
        raise ValueError("has characters that a URL cannot have")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL such as http://10.0.0.5:8000/v1") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("must hold no user name or password: use apiKey or authorization")
    if "?" in text or "#" in text:
        raise ValueError("must have no query and no fragment")
    if not parts.hostname or port == 0:
        raise ValueError("is not a URL such as http://10.0.0.5:8000/v1")
    host = _normal_host(parts.hostname)
    fault = _fault(host, allow_link_local)
    if fault is not None:
        raise ValueError(fault)
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}{f':{port}' if port is not None else ''}{parts.path.rstrip('/')}"


def _fault(host: str, allow_link_local: bool) -> str | None:
    """What is wrong with a backend on this host name or address."""
    address = _address(host)
    if address is None:
        why = "metadata" if host.rstrip(".").lower() in _METADATA_NAMES and not allow_link_local else None
    else:
        why = forbidden_address(str(address), allow_link_local=allow_link_local)
    if why is None:
        return None
    if why == "unspecified":
        return "has an address that servers listen on and nobody connects to: on the same machine it is 127.0.0.1"
    if why == "multicast":
        return "has an address of many hosts at once"
    return "points at a link-local or metadata address; set allow_link_local: true if that is meant"


def _normal_host(host: str) -> str:
    if _address(host) is None and not _HOST_NAME.fullmatch(host):
        raise ValueError("has a host that is neither a name nor an address")
    return host.lower()


def _address(host: str) -> Address | None:
    bare = host.split("%", 1)[0]  # a zone id (fe80::1%eth0) changes the way there, not what it is
    try:
        return ipaddress.ip_address(bare)
    except ValueError:
        pass
    try:  # 2852039166, 0xa9fea9fe and 169.254.43518 are addresses to every C library
        return ipaddress.IPv4Address(socket.inet_aton(bare))
    except (OSError, ValueError):
        return None
