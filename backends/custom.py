"""Type `custom`: any OpenAI-style URL, over HTTP/1.1.

`base_url` ends where OpenAI's does ("http://host:8000/v1"); the operation's path is put behind it. TLS certificates are verified against
the system's store and the authorities that `verifying` was given; redirects are not followed and no proxy is taken from the environment.
Which addresses are never connected to is the caller's to say (`forbidden`): see backends.http1.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from backends.http1 import Http1Pool

# vLLM and those who follow it serve these beside /v1, not below it.
_AT_ROOT = frozenset(("/tokenize", "/detokenize"))


class CustomBackend(Http1Pool):
    """A remote URL. `authorization` is a whole header value ("Bearer sk-..."); None sends none."""

    def target(self, path: str) -> str:
        """The request target of an operation's path."""
        prefix = self._prefix.removesuffix("/v1") if path in _AT_ROOT else self._prefix
        return prefix + path


def verifying(ca_file: Path | None) -> ssl.SSLContext:
    """What all remote backends of one process share: TLS 1.2 or newer, certificates and host names checked.

    `ca_file`: further authorities, PEM. Raises OSError (ssl.SSLError is one) where it cannot be read.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
