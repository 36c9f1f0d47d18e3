"""Is this process's GATEWAY_SECRET_KEY the database's still? Asked inside every change that encrypts something.

A server reads its keys when it starts. One that was forgotten when the key was replaced would write what nobody else can open.
"""

from __future__ import annotations

from gateway.changes.actor import Change
from gateway.errors import Conflict, Unavailable
from gateway.store import meta
from gateway.store.secrets import SecretBox


async def require_own_key(step: Change, box: SecretBox) -> None:
    """Raises `Unavailable` where others could not open what `box` encrypts."""
    if not await meta.admit_secret_key(step.conn, box.fingerprint, box.previous):
        raise Unavailable(
            "This process's GATEWAY_SECRET_KEY is not the one that the database is encrypted with now, so it stores no secret: "
            "restart it with the key that the other servers have."
        )


async def require_box(step: Change, box: SecretBox | None) -> None:
    """The same before content is logged, which is stored encrypted or not at all. `box` None: `Conflict`."""
    if box is None:
        raise Conflict("Content is logged only where there is a GATEWAY_SECRET_KEY to encrypt it with.", param="content_log")
    await require_own_key(step, box)
