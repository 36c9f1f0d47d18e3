"""Which new passwords are refused: too short, too long, one of the 30,000 most common or such a one dressed up, or the user's own e-mail.

The list is `common_passwords.txt.gz` beside this file: lower case, one a line, most common first; where it is from and its licence stand
in `common_passwords.LICENSE`. A password that was good when it was set is never asked for again: only new ones are looked at.
"""

from __future__ import annotations

import functools
import gzip
import re
from pathlib import Path

from auth.errors import PasswordUnsuitable

MIN_CHARS = 8
MAX_BYTES = 1024
_MIN_DIFFERENT = 4
_COMMON = Path(__file__).with_name("common_passwords.txt.gz")
_DISGUISES = str.maketrans("@4310$5!7", "aaeiossit")  # as people write letters; what stands for two letters takes the likelier one
_AROUND = re.compile(r"^[\W\d_]+|[\W\d_]+$")
_PARTS = re.compile(r"[@.+_-]")
_MIN_PART_CHARS = 3
_MIN_WORD_CHARS = 4


def check_password(password: str, email: str = "") -> None:
    """Raises `PasswordUnsuitable`, whose message is for whoever chose it. `email`: of the user, if it is known."""
    if len(password) < MIN_CHARS:
        raise PasswordUnsuitable(f"A password needs at least {MIN_CHARS} characters.")
    if len(password.encode()) > MAX_BYTES:
        raise PasswordUnsuitable(f"A password may have at most {MAX_BYTES} bytes.")
    plain = password.casefold()
    if len(set(plain)) < _MIN_DIFFERENT:
        raise PasswordUnsuitable(f"A password needs at least {_MIN_DIFFERENT} different characters.")
    if not _forms(plain).isdisjoint(common_passwords()):
        raise PasswordUnsuitable("This password is one of the most common ones, or nearly so: whoever guesses begins with those.")
    if len(_without(plain, email.strip().casefold())) < MIN_CHARS:
        raise PasswordUnsuitable(f"Beside the e-mail address and its parts a password needs at least {MIN_CHARS} characters.")


@functools.cache
def common_passwords() -> frozenset[str]:
    """The list, read when it is first needed."""
    return frozenset(gzip.decompress(_COMMON.read_bytes()).decode().split())


def _forms(plain: str) -> set[str]:
    """The password itself, and what it is under the digits and signs around it and the letters written as such."""
    undisguised = plain.translate(_DISGUISES)
    bare = _AROUND.sub("", plain)
    forms = (plain, undisguised, bare, bare.translate(_DISGUISES), _AROUND.sub("", undisguised))
    return {form for form in forms if len(form) >= _MIN_WORD_CHARS}


def _without(plain: str, email: str) -> str:
    """What is left of it without the e-mail, the name in it and the parts of both."""
    name, _, host = email.partition("@")
    parts = [email, name, host, *_PARTS.split(name), *_PARTS.split(host)]
    for part in sorted(set(parts), key=len, reverse=True):
        if len(part) >= _MIN_PART_CHARS:
            plain = plain.replace(part, "")
    return plain
