"""Fixtures for all tests."""

import gateway.native  # first of all: it makes the compiled form of the other packages known

pytest_plugins = ["tests.databases", "tests.server_logs"]


def pytest_report_header() -> str:
    return gateway.native.described()
