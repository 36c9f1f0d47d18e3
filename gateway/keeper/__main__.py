"""The keeper process: the background duties of one host. Started by `gateway serve`."""

from __future__ import annotations

import argparse
import asyncio
import gc

from gateway.keeper.duties import Keeper
from gateway.metering.log import configure_logs
from gateway.parent import die_with_parent
from gateway.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.keeper")
    parser.add_argument("--server-url", default="", help="where this host's server answers, for metric samples")
    arguments = parser.parse_args()
    die_with_parent()
    settings = load_settings()
    configure_logs(settings.log_level)
    gc.freeze()  # modules and mappers stay: no collection need look at them again
    asyncio.run(Keeper(settings, arguments.server_url).run())


if __name__ == "__main__":
    main()
