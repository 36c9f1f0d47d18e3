"""From the shell into a command and back: every failure is one plain sentence on stderr and an exit code.

0 done; 1 failed, or a fault was found; 2 wrong usage (typer's own). A traceback is shown only where `GATEWAY_LOG_LEVEL=debug` asks for it.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

from gateway.cli.output import CommandFailed, tell

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run() -> None:
    """Run the command that `sys.argv` names and exit the process."""
    gc.set_threshold(200_000, 20, 20)  # most of what a command makes is modules, which stay
    code = outcome()
    gc.freeze()  # the process ends: what it holds need not be looked through once more
    sys.exit(code)


def outcome(arguments: Sequence[str] | None = None) -> int:
    """Run the command that these arguments (without them: `sys.argv`) name; its exit code."""
    try:
        from gateway.cli.app import app

        app(args=None if arguments is None else list(arguments), prog_name="gateway")
    except SystemExit as left:
        return _flushed(left.code if isinstance(left.code, int) else int(left.code is not None))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough (`| head`)
        return _silenced(sys.stdout)
    except Exception as error:
        if os.environ.get("GATEWAY_LOG_LEVEL") == "debug":
            traceback.print_exc()
        tell(sentence(error))
        return 1
    return _flushed(0)


def sentence(error: Exception) -> str:
    """What went wrong, for whoever typed the command."""
    from gateway.errors import GatewayError
    from gateway.settings import SettingsError

    if isinstance(error, CommandFailed | SettingsError):
        return str(error)
    if isinstance(error, GatewayError):
        away = getattr(error, "reason", None)  # of StoreUnavailable, whose message is written for clients
        if not away:
            return error.message
        if error.code == "schema_foreign":
            return str(error)
        return f"The database does not answer ({away}): look at GATEWAY_DATABASE_URL, the disk and the server."
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or type(error).__name__}."
    return _of_store(error) or f"The command failed unexpectedly ({type(error).__name__}); GATEWAY_LOG_LEVEL=debug shows where."


def _of_store(error: Exception) -> str | None:
    from auth.errors import AuthError
    from gateway.store.errors import StoreFault

    if isinstance(error, StoreFault):
        return str(error)
    return getattr(error, "message", None) if isinstance(error, AuthError) else None


def _flushed(code: int) -> int:
    try:
        sys.stderr.flush()
    except OSError:  # of what was told there for people the outcome does not depend
        _silenced(sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _silenced(sys.stdout)
    except OSError as error:  # a result that is not there
        tell(sentence(error))
        _silenced(sys.stdout)
        return 1
    return code


def _silenced(stream: TextIO) -> int:
    """Keep the interpreter from complaining about what it cannot write when it flushes this at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 0
