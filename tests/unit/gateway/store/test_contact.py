"""How a process knows that the database is away, and how old its tables may be."""

from __future__ import annotations

import pytest

from gateway.store.contact import Contact
from gateway.store.errors import StoreUnavailable


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def contact(clock: Clock) -> Contact:
    return Contact(stale_s=60, clock=clock)


def fail(contact: Contact) -> None:
    with pytest.raises(StoreUnavailable), contact.made():
        raise StoreUnavailable("away")


def test_a_failed_try_means_away_and_a_good_one_back(contact: Contact) -> None:
    assert not contact.away
    fail(contact)
    assert contact.away
    with contact.made():
        pass
    assert not contact.away


def test_a_try_that_hangs_means_away(contact: Contact, clock: Clock) -> None:
    with contact.made():
        assert not contact.away
        clock.now_s += 2.1
        assert contact.away
    assert not contact.away


def test_a_fault_of_the_program_is_not_the_databases_absence(contact: Contact) -> None:
    with pytest.raises(ValueError, match="bug"), contact.made():
        raise ValueError("bug")
    assert not contact.away


def test_the_tables_are_stale_after_the_set_time_and_no_longer_once_it_answers(contact: Contact, clock: Clock) -> None:
    clock.now_s += 60
    fail(contact)
    assert contact.away
    assert not contact.stale
    clock.now_s += 0.1
    fail(contact)
    assert contact.stale
    with contact.made():
        pass
    assert not contact.stale
    assert not contact.away


def test_silence_alone_is_not_staleness(contact: Contact, clock: Clock) -> None:
    """On one host the counters say when there is something to read: a quiet day is no day without a database."""
    clock.now_s += 100_000
    assert not contact.stale
    with contact.made():
        assert not contact.stale
