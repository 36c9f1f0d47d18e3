"""The parts of a document that say how requests are spread: policies, shadow traffic, retries, probes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.routing.values import (
    Affinity,
    Attempts,
    BackendId,
    Copies,
    LoadFactor,
    Part,
    Percent,
    Person,
    PrefixBytes,
    ProbePath,
    ProbeSeconds,
    Share,
    Weight,
)


class StickyEntry(Part):
    """Policy sticky. `prefix_bytes`: of the prompt, where `by` is prefix.

    `load_factor`: no backend runs more than this many times its fair share; who finds it full goes to the next of their order.
    """

    by: Affinity = "key"
    prefix_bytes: PrefixBytes = 1024
    load_factor: LoadFactor = 1.25


class CanaryEntry(Part):
    """Policy canary: `percent` of the users go to `backends`, everyone else to the rest."""

    backends: Annotated[list[BackendId], Field(min_length=1)]
    percent: Percent
    by: Person = "user"


class ArmEntry(Part):
    """One arm of an experiment. Weight 0: nobody is assigned to it."""

    backends: Annotated[list[BackendId], Field(min_length=1)]
    weight: Weight = 1


class ExperimentEntry(Part):
    """Policy experiment. `name` and the arms' names go into every usage record."""

    name: BackendId
    by: Person = "user"
    arms: dict[BackendId, ArmEntry]


class ShadowEntry(Part):
    """A sampled part of the requests is copied to `backend`; no client sees its answers."""

    backend: BackendId
    sample: Share
    max_in_flight: Copies = 16


class RetriesEntry(Part):
    """`ratio`: retries per request, on the average. `max_attempts`: per request, the first one included."""

    ratio: Share = 0.2
    max_attempts: Attempts = 2


class ProbeEntry(Part):
    """Active probing: GET `path` (below the root of the server if it begins with a slash, else below base_url); any 2xx is alive."""

    path: ProbePath
    interval_s: ProbeSeconds = 10.0
    timeout_s: ProbeSeconds = 2.0
