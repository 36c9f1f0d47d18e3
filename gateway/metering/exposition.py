"""The text that Prometheus reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from gateway.metering.base import Metering


def exposition(meter: Metering) -> bytes:
    """All metrics of this server; over all its processes where there are several (PROMETHEUS_MULTIPROC_DIR is set by `serve` then)."""
    meter.flush()
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(meter.metrics.registry)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget_process(folder: str, pid: int) -> None:
    """A server process is dead: what it counted stays, its gauges (requests in flight, revision) go. `folder`: PROMETHEUS_MULTIPROC_DIR."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def parse(text: str, names: frozenset[str]) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of the series named. Only their lines go through the parser: the others are most of the text."""
    wanted = "".join(f"{line}\n" for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in names)
    samples = (sample for family in text_string_to_metric_families(wanted) for sample in family.samples)
    return [(sample.name, dict(sample.labels), float(sample.value)) for sample in samples if sample.name in names]
