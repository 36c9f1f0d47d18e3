"""Where httpx connects to: to an address that was looked at, whatever the name of its host says a moment later.

For what the control plane and the keeper ask of others (probes, login providers, published keys). Connections to backends have the same
rule in backends.http1.
"""

from __future__ import annotations

import asyncio
import socket

import httpx

from auth.address import forbidden_address


class AddressForbidden(httpx.ConnectError):
    """Every address of the host is one that the gateway does not connect to."""


UNANSWERED = (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)
"""What asking somebody may raise. ValueError: a host name that IDNA refuses."""


def failure(error: Exception) -> str:
    """Of one of `UNANSWERED`, in one word: timeout, forbidden, unreachable, failed. Without addresses, so it may be shown to anybody."""
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return "timeout"
    if isinstance(error, AddressForbidden):
        return "forbidden"
    return "unreachable" if isinstance(error, httpx.ConnectError) else "failed"


class Pinned(httpx.AsyncBaseTransport):
    """Sends each request to an address that was judged, under the name that was asked for (Host, SNI, certificate).

    `inner` must keep no connection: one for two names on one address would show the second the first one's certificate.
    Raises `AddressForbidden`, and whatever httpx does.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, *, allow_link_local: bool = False) -> None:
        self._inner = inner
        self._allow_link_local = allow_link_local

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        request.extensions = {**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii").partition("%")[0]}
        last: httpx.TransportError = AddressForbidden("no address of this host may be connected to")
        for ip in await self._addresses(host):
            request.url = request.url.copy_with(host=ip)
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent: the next address may do
                last = error
        raise last

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _addresses(self, host: str) -> list[str]:
        """Those of the host that may be connected to, in the resolver's order."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # UnicodeError: a label that no resolver takes
            raise httpx.ConnectError("the host name cannot be looked up") from None
        addresses = dict.fromkeys(host if "%" in host else str(address[0]) for _, _, _, _, address in found)
        return [ip for ip in addresses if forbidden_address(ip, allow_link_local=self._allow_link_local) is None]
