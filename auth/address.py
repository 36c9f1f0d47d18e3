"""Addresses: whose a request is, which networks a key or a proxy belongs to, and where the gateway itself never connects.

Everything here works on text and answers with normalised text: an IPv4 address inside an IPv6 one ("::ffff:10.0.0.1") is the IPv4
address, a zone ("fe80::1%eth0") is cut off, IPv6 is written short. "" stands for an address that is not known: no network holds it.

Whose a request is: the peer's, unless the peer is a trusted proxy. Then it is the last entry of X-Forwarded-For or Forwarded (RFC 7239)
that no trusted proxy stands at, read from the right: what lies further left was written by whoever asked, and may say anything.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Headers = Iterable[tuple[bytes, bytes]]

_V4_IN_V6 = b"\x00" * 10 + b"\xff\xff"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Networks:
    """A set of networks. `texts` are their normal forms ("10.0.0.0/8"), as given and in that order; equal sets of texts are equal.

    Whoever keeps them for several keys may do so without keeping them alive.
    """

    texts: tuple[str, ...] = ()
    # for each length of address in bytes: first and last addresses of disjoint ranges, in order
    _ranges: dict[int, tuple[list[bytes], list[bytes]]] = field(default_factory=dict, compare=False, repr=False)

    def __contains__(self, address: object) -> bool:
        """Does one of them hold this address? False for text that is not an address."""
        if not self.texts or not isinstance(address, str):
            return False
        packed = _packed(address)
        if packed is None or len(packed) not in self._ranges:
            return False
        firsts, lasts = self._ranges[len(packed)]
        at = bisect_right(firsts, packed) - 1
        return at >= 0 and packed <= lasts[at]

    def __bool__(self) -> bool:
        return bool(self.texts)


def parse_networks(texts: Iterable[str]) -> Networks:
    """CIDR networks or single addresses; empty texts are skipped. `ValueError` holds a sentence that names the first faulty one."""
    found = [_network(text.strip()) for text in texts if text.strip()]
    v4 = ipaddress.collapse_addresses(network for network in found if isinstance(network, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(network for network in found if isinstance(network, ipaddress.IPv6Network))
    ranges = {size: _ends(networks) for size, networks in ((4, list(v4)), (16, list(v6)))}
    return Networks(tuple(dict.fromkeys(str(network) for network in found)), ranges)


def normal_address(text: str) -> str:
    """The normal form of an address; "" where it is none (a Unix socket's peer, a host name)."""
    if text and ":" not in text and "%" not in text:
        return text if _packed(text) is not None else ""
    packed = _packed(text)
    if packed is None:
        return ""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def client_address(peer: str, headers: Headers, trusted: Networks) -> str:
    """Whose request this is. `peer`: who holds the connection; header names in lower case.

    A proxy writes one of the two headers and passes the other on as the client sent it. Where both are there they must therefore agree;
    where they do not, or the entry is no address, whose it is cannot be known: "".
    """
    if not trusted or peer not in trusted:
        return normal_address(peer)
    forwarded_for: list[bytes] = []
    forwarded: list[bytes] = []
    for name, value in headers:
        if name == b"x-forwarded-for":
            forwarded_for.append(value)
        elif name == b"forwarded":
            forwarded.append(value)
    found: set[str] = set()
    if forwarded_for:
        found.add(_nearest([entry.strip() for entry in b",".join(forwarded_for).decode("latin-1").split(",")], trusted))
    if forwarded:
        elements = _elements(b",".join(forwarded).decode("latin-1"))
        found.add(_nearest([element.get("for", "") for element in elements], trusted))
    if not found:
        return normal_address(peer)
    return found.pop() if len(found) == 1 else ""


def client_is_secure(tls: bool, peer: str, headers: Headers, trusted: Networks) -> bool:
    """Does the client speak https? `tls`: this connection does. A trusted proxy may say so of its own client."""
    if tls:
        return True
    if not trusted or peer not in trusted:
        return False
    said: str | None = None
    for name, value in headers:
        if name == b"x-forwarded-proto":
            said = value.decode("latin-1").rpartition(",")[2].strip().lower()
        elif name == b"forwarded" and said is None:
            elements = list(_elements(value.decode("latin-1")))
            said = elements[-1].get("proto", "").lower() or None if elements else None
    return said in ("https", "wss")


def forbidden_address(ip: str, *, allow_link_local: bool = False) -> str | None:
    """Why the gateway does not connect to this address, in a word or two; None where it may.

    Loopback and private networks are fine: that is where backends live. `allow_link_local` lifts what cloud hosts hand out their
    credentials on, but neither the unspecified addresses (which are this host) nor multicast.
    """
    packed = _packed(ip)
    if packed is None:
        return "not an address"
    for inner in _inner(ipaddress.ip_address(packed)):
        if inner.is_unspecified or inner in _THIS_NETWORK:
            return "unspecified"
        if inner.is_multicast or inner == _BROADCAST:
            return "multicast"
        if not allow_link_local and inner.is_link_local:
            return "link-local"
        if not allow_link_local and any(inner in network for network in _METADATA):
            return "metadata"
    return None


_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
# Where hosts of clouds find their credentials beside 169.254.0.0/16 and fe80::/10: Alibaba, Azure, Oracle; Amazon, Google, Scaleway.
_METADATA = tuple(
    ipaddress.ip_network(text)
    for text in ("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/32", "fd20:ce::254/128", "fd00:42::42/128")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


def _inner(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 addresses that a network on the way may take it for."""
    yield address
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        yield ipaddress.IPv4Address(address.packed[-4:])
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _packed(text: str) -> bytes | None:
    """4 or 16 bytes; None where it is no address. Only the plain notation: "010.1" and "2130706433" are none."""
    bare = text.partition("%")[0]
    try:
        if ":" not in bare:
            return socket.inet_pton(socket.AF_INET, bare)
        packed = socket.inet_pton(socket.AF_INET6, bare)
    except (OSError, ValueError):  # ValueError: a NUL, or what is not ASCII
        return None
    return packed[12:] if packed.startswith(_V4_IN_V6) else packed


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text[:64]!r} is neither an address nor a network such as 10.0.0.0/8 or 2001:db8::/32.") from None
    if network != _strict(text):
        bare = text.partition("/")[0]
        raise ValueError(f"{text} is an address inside a network: write {network} for the network, or {bare} for the address alone.")
    if isinstance(network, ipaddress.IPv6Network):
        if network.network_address.scope_id is not None:
            raise ValueError(f"{text[:64]!r} has a zone: a network has none.")
        if network.network_address.packed.startswith(_V4_IN_V6) and network.prefixlen >= 96:
            return ipaddress.IPv4Network((network.network_address.packed[12:], network.prefixlen - 96))
    return network


def _strict(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _ends(networks: Iterable[ipaddress.IPv4Network] | Iterable[ipaddress.IPv6Network]) -> tuple[list[bytes], list[bytes]]:
    ends = [(network.network_address.packed, network.broadcast_address.packed) for network in networks]
    return [first for first, _ in ends], [last for _, last in ends]


def _nearest(entries: list[str], trusted: Networks) -> str:
    """The last entry at which no trusted proxy stands; the first one where they all are; "" where it is not an address."""
    address = ""
    for entry in reversed(entries):
        address = normal_address(_without_port(entry))
        if address not in trusted:
            break
    return address


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, _ = entry.partition(":")
    return host if colon and entry.count(":") == 1 else entry


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+"  # a little wider than RFC 7239: addresses are often left unquoted
_PAIR = re.compile(rf'\s*([A-Za-z-]+)=("(?:[^"\\]|\\.)*"|{_TOKEN})?\s*([;,]|$)')


def _elements(value: str) -> Iterator[dict[str, str]]:
    """The elements of a Forwarded header, parameters by lower-case name. What is not of its form ends them with an empty element."""
    at, element = 0, dict[str, str]()
    while at < len(value):
        pair = _PAIR.match(value, at)
        if pair is None:
            yield {}
            return
        text = pair[2] or ""
        element.setdefault(pair[1].lower(), re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text)
        at = pair.end()
        if pair[3] != ";":
            yield element
            element = {}
    if element:
        yield element
