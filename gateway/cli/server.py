"""The entry of one server process: started by `gateway serve`, never by hand."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from gateway.loading import loading
from gateway.parent import die_with_parent

if TYPE_CHECKING:
    from gateway.app import Services
    from gateway.settings import Settings


def main(compose: Callable[[Settings], Awaitable[Services]] | None = None) -> None:
    """argv: the file descriptor of this process's listening socket.

    `compose`: the benchmark puts other forms behind the seams here; `gateway serve` never does.
    """
    die_with_parent()
    with loading():
        from gateway.cli.relay_server import run
    (fd,) = map(int, sys.argv[1:])
    run(fd, compose)


if __name__ == "__main__":
    main()
