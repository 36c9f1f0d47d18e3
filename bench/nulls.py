"""The gateway with the null form behind each seam: what is left when nobody is known, limited, recorded or counted.

    GATEWAY_HOME=... python -m bench.nulls --port 8200

The same server process as `gateway serve` starts, composed by code: every credential is one unlimited caller, every
request is admitted, the ledger and the meter take nothing, and the order of targets is the one they are written in. No
setting does this. There is no keeper, because there is nothing to ship, and no supervisor. Request log, upstream pool and
the whole relay are what they always are. The home must have a live revision (`gateway init`, `gateway apply -f FILE`).
"""

from __future__ import annotations

import argparse
import socket
import sys
from dataclasses import replace

from auth.credential import Shown
from auth.principal import Principal, Role
from gateway.app import Services
from gateway.cli import server
from gateway.limits.base import NullLimiter
from gateway.metering.base import NullMeter
from gateway.metering.ledger import NullLedger
from gateway.routing.policies import PolicyContext, Rng
from gateway.routing.table import Route, RouteTable, Target
from gateway.settings import Settings


class OpenDoor:
    """Everybody is the same caller, who may use every model and has no limits."""

    def __init__(self) -> None:
        self._principal = Principal("nobody", Role.MEMBER, frozenset({"inference"}), limit_id="nobody")

    def authenticate(self, credential: bytes, now_s: float, shown: Shown | None = None) -> Principal:
        return self._principal


class AsWritten:
    """The policy that decides nothing."""

    def order(self, targets: tuple[Target, ...], context: PolicyContext, rng: Rng) -> tuple[Target, ...]:
        return targets


def undecided(route: Route) -> Route:
    return replace(route, policy=AsWritten())


async def compose(settings: Settings) -> Services:
    """The services of `gateway serve`, then null forms in place of what stands behind the seams."""
    services = await Services.open(settings)
    relay = services.relay
    services.ledger.close()
    relay.authenticator = OpenDoor()
    relay.limiter = NullLimiter()
    relay.ledger = services.ledger = NullLedger()  # type: ignore[assignment]  # whoever closes the services closes it
    relay.meter = NullMeter(relay.meter.metrics)
    table = relay.table
    relay.table = RouteTable(table.revision, {name: undecided(route) for name, route in table.routes.items()}, table.problems)
    return services


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.nulls", description="The gateway's server with null forms behind its seams.")
    parser.add_argument("--port", type=int, required=True)
    listening = socket.create_server(("127.0.0.1", parser.parse_args().port), backlog=4096)
    sys.argv[1:] = [str(listening.detach())]  # as the supervisor hands it over
    server.main(compose)


if __name__ == "__main__":
    main()
