"""Networks, whose a request is behind proxies, and where the gateway never connects."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auth.address import Networks, client_address, client_is_secure, forbidden_address, normal_address, parse_networks

PROXIES = parse_networks(["10.0.0.0/8", "fd00::/8", "192.0.2.1"])
NOBODY = parse_networks([])
PROXY = "10.0.0.1"


def headers(*pairs: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in pairs]


def xff(*values: str) -> list[tuple[bytes, bytes]]:
    return headers(*(("x-forwarded-for", value) for value in values))


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return headers(*(("forwarded", value) for value in values))


class TestNetworks:
    def test_what_is_in_them(self) -> None:
        for inside in ("10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3", "fd12::1", "fd12::1%eth0", "192.0.2.1"):
            assert inside in PROXIES, inside
        for outside in (
            "9.255.255.255",
            "11.0.0.0",
            "192.0.2.2",
            "fe00::1",
            "::a00:1",
            "",
            "10.1",
            "010.0.0.1",
            "host",
            "10.0.0.1:80",
            "\0",
        ):
            assert outside not in PROXIES, outside
        assert 5 not in PROXIES
        assert "127.0.0.1" not in NOBODY

    def test_normal_texts_in_their_order(self) -> None:
        made = parse_networks([" 192.168.0.1 ", "", "2001:DB8:0::/32", "::ffff:10.0.0.0/104", "192.168.0.1/32"])
        assert made.texts == ("192.168.0.1/32", "2001:db8::/32", "10.0.0.0/8")
        assert made == parse_networks(made.texts)
        assert hash(made) == hash(parse_networks(made.texts))
        assert bool(made)
        assert not NOBODY
        assert Networks() == NOBODY

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("10.0.0.5/8", "write 10.0.0.0/8 for the network, or 10.0.0.5 for the address"),
            ("fd00::5/8", "write fd00::/8"),
            ("example.com", "neither an address nor a network"),
            ("10.0.0.0/33", "neither"),
            ("10.0.0", "neither"),
            ("*", "neither"),
            ("fe80::1%eth0", "zone"),
        ],
    )
    def test_faults_are_said_plainly(self, text: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            parse_networks(["127.0.0.1", text])

    @given(
        st.lists(st.ip_addresses(v=4, network="10.0.0.0/29").map(lambda a: f"{a}/30"), max_size=4).map(
            lambda texts: [str(ipaddress.ip_network(text, strict=False)) for text in texts]
        )
        | st.lists(
            st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda p: str(ipaddress.ip_network(p, strict=False))), max_size=4
        ),
        st.ip_addresses(v=4, network="10.0.0.0/28") | st.ip_addresses(),
    )
    @example(["::ffff:0:0/96"], ipaddress.ip_address("::ffff:0:0"))
    @settings(max_examples=300)
    def test_as_the_standard_library_has_it(self, texts: list[str], address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        known = [_unmapped(ipaddress.ip_network(text)) for text in texts]
        assert (str(address) in parse_networks(texts)) == any(address in network for network in known)


def _unmapped(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network of IPv4 addresses inside IPv6 ones is that of the IPv4 addresses."""
    first = network.network_address
    if isinstance(first, ipaddress.IPv6Address) and first.ipv4_mapped is not None and network.prefixlen >= 96:
        return ipaddress.ip_network((first.ipv4_mapped, network.prefixlen - 96))
    return network


class TestClientAddress:
    @pytest.mark.parametrize(
        ("peer", "normal"),
        [
            ("203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("", ""),
            ("/run/x.sock", ""),
            ("testclient", ""),
        ],
    )
    def test_the_peer_in_normal_form(self, peer: str, normal: str) -> None:
        assert client_address(peer, [], NOBODY) == normal
        assert client_address(peer, [], PROXIES) == normal
        assert normal_address(peer) == normal

    @pytest.mark.parametrize("said", [xff("198.51.100.9"), forwarded("for=198.51.100.9"), xff("10.0.0.9")])
    def test_strangers_are_not_believed(self, said: list[tuple[bytes, bytes]]) -> None:
        assert client_address("203.0.113.7", said, PROXIES) == "203.0.113.7"
        assert client_address(PROXY, said, NOBODY) == PROXY  # nobody is trusted by default

    @pytest.mark.parametrize(
        ("said", "address"),
        [
            ([], PROXY),
            (xff("198.51.100.9"), "198.51.100.9"),
            (xff("1.1.1.1, 198.51.100.9"), "198.51.100.9"),  # the left one was there when the proxy got it
            (xff("1.1.1.1, 198.51.100.9, 10.0.0.2"), "198.51.100.9"),  # two proxies
            (xff("1.1.1.1", "198.51.100.9"), "198.51.100.9"),  # two headers are one list
            (xff("198.51.100.9:4711"), "198.51.100.9"),
            (xff("[2001:db8::9]:4711"), "2001:db8::9"),
            (xff("2001:db8::9"), "2001:db8::9"),
            (xff("::ffff:198.51.100.9"), "198.51.100.9"),
            (xff("::ffff:10.0.0.3"), "10.0.0.3"),  # all of them ours: the first
            (xff("10.0.0.4, 10.0.0.3"), "10.0.0.4"),
            (xff("198.51.100.9, unknown"), ""),
            (xff("198.51.100.9, "), ""),
            (xff(""), ""),
            (forwarded("for=198.51.100.9;proto=https;by=10.0.0.1"), "198.51.100.9"),
            (forwarded("For=1.1.1.1, for=198.51.100.9"), "198.51.100.9"),
            (forwarded("for=1.1.1.1", 'for="[2001:db8::9]:4711"'), "2001:db8::9"),
            (forwarded('for="198.51.100.9:4711"; proto=http , for=10.0.0.2'), "198.51.100.9"),
            (forwarded('for=1.1.1.1;ext="a,for=2.2.2.2", for=198.51.100.9'), "198.51.100.9"),  # a comma in quotes parts nothing
            (forwarded('for="1.1.1.\\1"'), "1.1.1.1"),
            (forwarded("for=_hidden"), ""),
            (forwarded("for=unknown"), ""),
            (forwarded("proto=https"), ""),
            (forwarded('for=198.51.100.9, for="1.1.1.1'), ""),  # an open quote: nobody knows what the rest was
            (forwarded("198.51.100.9"), ""),
        ],
    )
    def test_behind_trusted_proxies(self, said: list[tuple[bytes, bytes]], address: str) -> None:
        assert client_address(PROXY, said, PROXIES) == address
        assert client_address(f"::ffff:{PROXY}", said, PROXIES) == address

    def test_two_headers_that_say_different_things_say_nothing(self) -> None:
        """A proxy writes one and passes the other on: with either of them a client could choose its address."""
        assert client_address(PROXY, xff("198.51.100.9") + forwarded("for=127.0.0.1"), PROXIES) == ""
        assert client_address(PROXY, xff("127.0.0.1") + forwarded("for=198.51.100.9"), PROXIES) == ""
        assert client_address(PROXY, xff("198.51.100.9") + forwarded('for="198.51.100.9:80"'), PROXIES) == "198.51.100.9"

    def test_the_unknown_is_in_no_network(self) -> None:
        assert client_address(PROXY, xff("junk"), PROXIES) not in parse_networks(["0.0.0.0/0", "::/0"])

    @given(st.text(max_size=60), st.text(max_size=60))
    def test_what_a_client_wrote_never_counts(self, written: str, other: str) -> None:
        mine = xff(written.encode("utf-8", "replace").decode("latin-1") + ", 198.51.100.9")
        assert client_address(PROXY, mine, PROXIES) == "198.51.100.9"
        raw = other.encode("utf-8", "replace").decode("latin-1")
        assert client_address(PROXY, forwarded(raw) + xff("198.51.100.9"), PROXIES) in ("198.51.100.9", "")

    def test_long_headers_take_no_time(self) -> None:
        import time

        began_s = time.perf_counter()
        for evil in ("a=" * 30_000, '"' * 60_000, "for=" + "\\" * 60_000, 'for="' + "\\" * 60_000, " " * 60_000, ",;" * 30_000):
            client_address(PROXY, forwarded(evil), PROXIES)
            client_address(PROXY, xff(evil), PROXIES)
        assert time.perf_counter() - began_s < 2


class TestSecure:
    @pytest.mark.parametrize(
        ("said", "secure"),
        [
            ([], False),
            (headers(("x-forwarded-proto", "https")), True),
            (headers(("x-forwarded-proto", "HTTPS")), True),
            (headers(("x-forwarded-proto", "https, http")), False),
            (headers(("x-forwarded-proto", "http")), False),
            (forwarded("for=1.1.1.1;proto=https"), True),
            (forwarded("for=1.1.1.1;proto=https, for=2.2.2.2;proto=http"), False),
            (forwarded("proto=https") + headers(("x-forwarded-proto", "http")), False),
            (forwarded("for=1.1.1.1"), False),
        ],
    )
    def test_a_trusted_proxy_says_so(self, said: list[tuple[bytes, bytes]], secure: bool) -> None:
        assert client_is_secure(False, PROXY, said, PROXIES) is secure
        assert client_is_secure(True, PROXY, said, PROXIES)
        assert not client_is_secure(False, "203.0.113.7", said, PROXIES)
        assert not client_is_secure(False, PROXY, said, NOBODY)


class TestForbidden:
    @pytest.mark.parametrize(
        "ip", ["127.0.0.1", "127.9.9.9", "::1", "10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::5", "8.8.8.8", "2606:4700::1"]
    )
    def test_backends_live_here(self, ip: str) -> None:
        assert forbidden_address(ip) is None

    @pytest.mark.parametrize(
        ("ip", "why"),
        [
            ("169.254.169.254", "link-local"),
            ("169.254.0.1", "link-local"),
            ("::ffff:169.254.169.254", "link-local"),
            ("::169.254.169.254", "link-local"),
            ("64:ff9b::169.254.169.254", "link-local"),
            ("2002:a9fe:a9fe::1", "link-local"),
            ("fe80::1", "link-local"),
            ("fe80::1%eth0", "link-local"),
            ("febf::1", "link-local"),
            ("fd00:ec2::254", "metadata"),
            ("fd20:ce::254", "metadata"),
            ("100.100.100.200", "metadata"),
            ("::ffff:100.100.100.200", "metadata"),
            ("168.63.129.16", "metadata"),
        ],
    )
    def test_what_hands_out_credentials_is_refused_unless_allowed(self, ip: str, why: str) -> None:
        assert forbidden_address(ip) == why
        assert forbidden_address(ip, allow_link_local=True) is None

    @pytest.mark.parametrize(
        ("ip", "why"),
        [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("::", "unspecified"),
            ("::ffff:0.0.0.0", "unspecified"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "multicast"),
            ("ff02::1", "multicast"),
            ("2852039166", "not an address"),
            ("0251.0376.0251.0376", "not an address"),
            ("localhost", "not an address"),
            ("", "not an address"),
        ],
    )
    def test_refused_always(self, ip: str, why: str) -> None:
        assert forbidden_address(ip) == why
        assert forbidden_address(ip, allow_link_local=True) == why
