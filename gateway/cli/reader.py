"""The entry of the reader process: started by `gateway serve`, never by hand."""

from __future__ import annotations

from gateway.loading import loading
from gateway.parent import die_with_parent


def main() -> None:
    die_with_parent()
    with loading():
        from gateway.cli.reader_server import run
    run()


if __name__ == "__main__":
    main()
