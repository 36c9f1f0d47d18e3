"""The keeper process: the background duties of one host. Started by `gateway serve`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys

from gateway.loading import loading
from gateway.parent import die_with_parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.keeper")
    parser.add_argument("--server-url", default="", help="where this host's server answers, for metric samples")
    arguments = parser.parse_args()
    die_with_parent()
    with loading():
        import structlog

        from gateway.keeper.duties import Keeper
        from gateway.metering.log import configure_logs
        from gateway.settings import load_settings
        from gateway.store.errors import SchemaForeign
    gc.set_threshold(50_000, 20, 20)  # booking leaves no cycles behind: the collector need not look after every few rows
    settings = load_settings()
    configure_logs(settings.log_level)
    try:
        asyncio.run(Keeper(settings, arguments.server_url).run())
    except SchemaForeign as error:
        structlog.get_logger(__name__).error("the keeper could not start", reason=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
