"""In which form a server process counts limits, and whether that is the supervisor's: two forms beside each other count apart.

A process that is started again takes the files that are on the disk then: after an update beneath a running gateway, or an edit of a
compiled source, they are others than those of the processes beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.limits.levels import FORM

FORM_VARIABLE = "_GATEWAY_LEVELS_FORM"
"""How the supervisor tells its servers which form was there when it began."""


def other_form(environ: Mapping[str, str], own: str = FORM) -> str | None:
    """A sentence where this process counts in another form than its supervisor began with; None where all is well."""
    first = environ.get(FORM_VARIABLE, own)
    if first == own:
        return None
    return (
        f"This process counts limits in the form {own!r}, those started before it in the form {first!r}: each form lets the whole of every "
        "limit through. The installation was changed beneath the running gateway: stop `gateway serve` and start it again."
    )
