"""Which accounts may have logged in from which addresses: a quick "no" for strangers, without asking the database.

A Bloom filter of half a megabyte, in this process: whoever is in it may be known, and the database says whether they are; whoever is not
is a stranger, at least for now. It is kept up with logins elsewhere by asking for those since last time, at most every few seconds.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable

from auth.ports import AccountStore

REFRESH_S = 5.0
_OVERLAP_S = 300.0  # hosts' clocks differ, and a login is seen a moment after its time
_BITS = 1 << 22
_PROBES = 4  # 300,000 pairs: one stranger in 300 is looked up for nothing


class Known:
    """`clock`: Unix seconds; of logins, too."""

    def __init__(self, accounts: AccountStore, clock: Callable[[], float] = time.time) -> None:
        self._accounts = accounts
        self._clock = clock
        self._bits = bytearray(_BITS // 8)
        self._key = secrets.token_bytes(16)  # or somebody could make up addresses that are taken for known
        self._since = 0.0
        self._next_s = float("-inf")

    async def follow(self) -> None:
        """Learn of logins since last time, if that is a while ago. Raises what the store raises."""
        now_s = self._clock()
        if abs(now_s - self._next_s) < REFRESH_S:
            return
        self._next_s = now_s
        try:
            for email, address in await self._accounts.logged_in_since(self._since):
                self.add(email, address)
        except BaseException:
            self._next_s = float("-inf")  # the next one tries again
            raise
        self._since = max(self._since, now_s - _OVERLAP_S)

    def add(self, email: str, address: str) -> None:
        for at in self._places(email, address):
            self._bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, pair: tuple[str, str]) -> bool:
        """May this (e-mail, address) be known? False: not as far as is known here."""
        return all(self._bits[at >> 3] & 1 << (at & 7) for at in self._places(*pair))

    def _places(self, email: str, address: str) -> Iterable[int]:
        text = f"{len(email)} {email} {address}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, key=self._key, digest_size=4 * _PROBES).digest()
        return [int.from_bytes(digest[i : i + 4], "little") % _BITS for i in range(0, 4 * _PROBES, 4)]
