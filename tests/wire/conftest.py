"""Fixtures of the wire's tests."""

from tests.wire.served import served

__all__ = ["served"]
