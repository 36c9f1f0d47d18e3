"""Base URLs: what is put right, what is refused."""

from __future__ import annotations

import pytest

from gateway.routing.urls import normal_base_url


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("http://10.0.0.5:8000/v1", "http://10.0.0.5:8000/v1"),
        ("HTTPS://Api.Example.COM/v1/", "https://api.example.com/v1"),
        ("http://localhost", "http://localhost"),
        ("http://[::1]:9000/v1//", "http://[::1]:9000/v1"),
        ("http://model_server-1:8000/a%20b", "http://model_server-1:8000/a%20b"),
    ],
)
def test_normal_form(given: str, normal: str) -> None:
    assert normal_base_url(given) == normal


@pytest.mark.parametrize(
    "url",
    [
        "", "10.0.0.5:8000", "ftp://h/v1", "file:///etc/passwd", "http://", "http:///v1", "http://u:p@h/v1", "http://u@h/v1", "http://h/v1?x=1",
        "http://h/v1?", "http://h/v1#f", "http://h:99999/v1", "http://h:0/v1", "http://h:x/v1", "http://h/v1\n", "http://h /v1", "http://h\\@evil/",
        "http://-h/", "http://a..b/", "http://[::1/", "http://호스트/v1", "http://%31/", "unix:/x",
    ],
)  # fmt: skip
def test_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|is|has|points)"):
        normal_base_url(url)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "169.254.0.1", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "[fe80::1]",
        "[fe80::1%25eth0]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200", "metadata.google.internal",
        "METADATA.google.internal.", "metadata",
    ],
)  # fmt: skip
def test_what_hands_out_a_machines_credentials_is_refused_unless_meant(host: str) -> None:
    with pytest.raises(ValueError, match="link-local or metadata"):
        normal_base_url(f"http://{host}/v1")
    assert normal_base_url(f"http://{host}/v1", allow_link_local=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "[::]", "[::ffff:0.0.0.0]", "224.0.0.1", "[ff02::1]", "255.255.255.255"])
def test_what_is_no_one_host_is_refused_always(host: str) -> None:
    for allowed in (False, True):
        with pytest.raises(ValueError, match=r"^has an address (that servers listen on|of many hosts)"):
            normal_base_url(f"http://{host}:8000/v1", allow_link_local=allowed)


@pytest.mark.parametrize("host", ["10.0.0.5", "127.0.0.1", "192.168.1.1", "[::1]", "[fd00::5]", "2130706433"])
def test_private_addresses_are_what_backends_have(host: str) -> None:
    assert normal_base_url(f"http://{host}/v1")
