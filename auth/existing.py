"""Keys that were made elsewhere and are to go on working here: is a text fit to be one?

A key minted here has 256 random bits. What is brought along may be anything; a text that someone could guess, or that stands in
somebody's documentation, is refused. How random a text is cannot be measured: this finds what is plainly not.

A key of another installation of this gateway comes with its id. Its form proves nothing (there is no checksum: whoever can write 43 letters
can write one), so its secret is judged as any other text, by a stricter measure, as we know what it was drawn from. What only begins like
one has lost a part on its way here.
"""

from __future__ import annotations

import itertools
import re

from auth.credential import looks_like_token
from auth.keys import PREFIX, looks_like_key

MIN_CHARS, MAX_CHARS = 20, 512
_MIN_REST_CHARS = 16
_MIN_DIFFERENT = 7
_MIN_DIFFERENT_MINTED = 16  # of 43 characters drawn from 62, fewer are different once in 10^13 keys
# What stands in samples, and what vendors begin their keys with: nothing of it is secret.
_WORDS = re.compile(
    "example|sample|change|placeholder|dummy|insert|replace|secret|password|default|undefined|openai|anthropic|gateway|master|"
    "hello|world|lorem|ipsum|qwerty|foobar|your|test|demo|fake|todo|none|null|here|token|api|key|proj|live|prod|admin|user|bearer|"
    "abcdef|123456|sk|my|me|hf|gw|[^a-z0-9]"
)


def unfit(text: str) -> str | None:
    """Why `text` cannot be a key, in a sentence that does not repeat it; None: it can."""
    if not MIN_CHARS <= len(text) <= MAX_CHARS:
        return f"A key has {MIN_CHARS} to {MAX_CHARS} characters."
    if not text.isascii() or not text.isprintable() or " " in text:
        return "A key consists of printable ASCII characters without spaces: no others reach the gateway in every header."
    if looks_like_token(text.encode()):
        return "This has the form of a login token (JWT), which is never looked up among the keys."
    own = text.startswith(PREFIX)
    if own and not looks_like_key(text.encode()):
        return f"This begins as keys of this gateway do ({PREFIX}), but it is not all of it, or more: copy the whole key."
    if _easy_secret(text.rpartition("-")[2]) if own else _guessable(_WORDS.sub("", text.lower())):
        return "This text is too easy to guess, or a sample: let the gateway make a key instead."
    return None


def beginning(text: str) -> str:
    """What may be shown of such a key, to recognise it by: never more than a fifth of it."""
    return text[: min(8, len(text) // 5)]


def _easy_secret(secret: str) -> bool:
    """Is this plainly not drawn as `auth.keys.mint` draws them?"""
    return len(set(secret)) < _MIN_DIFFERENT_MINTED or _guessable(secret)


def _guessable(rest: str) -> bool:
    """`rest`: what is left of a text without its words."""
    if len(rest) < _MIN_REST_CHARS or len(set(rest)) < _MIN_DIFFERENT:
        return True
    if rest in (rest + rest)[1:-1]:  # one part again and again
        return True
    steps = sum(abs(ord(one) - ord(other)) <= 1 for one, other in itertools.pairwise(rest))
    return steps > len(rest) / 2  # a run along the keyboard of a typewriter, or of one character
