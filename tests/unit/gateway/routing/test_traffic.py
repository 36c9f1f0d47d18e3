"""What a document may say about policies, shadow traffic, fallback, retries and probes, and every way of saying it wrong."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.routing.document import canonical
from gateway.routing.faults import DocumentInvalid
from gateway.routing.file import export_yaml, read_text
from gateway.routing.reading import parse_document

A, B, C = ({"type": "echo", "id": name} for name in "abc")
CUSTOM = {"type": "custom", "id": "a", "base_url": "http://10.0.0.5:8000/v1"}

EVERYTHING = """\
models:
  - id: chat
    policy: canary
    canary: {backends: [new], percent: "5", by: header:X-Team}
    shadow: {backend: dark, sample: 0.05, maxInFlight: 4}
    fallback: spare
    retries: {ratio: 0.1, maxAttempts: 3}
    backends:
      - {type: custom, id: old, baseURL: "http://10.0.0.5:8000/v1", priority: 1, probe: {path: /health, intervalS: 5, timeoutS: 0.5}}
      - {type: echo, id: new}
      - {type: echo, id: dark, weight: 0}
  - id: spare
    policy: experiment
    experiment:
      name: summer
      arms:
        controlGroup: {backends: [echo-1]}
        candidate: {weight: 3, backends: [echo-2]}
    backends: [{type: echo}, {type: echo}]
  - id: embed
    policy: sticky
    sticky: {by: prefix, prefixBytes: 256, loadFactor: 1.5}
    backends: [{type: echo}]
"""


def document(*backends: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"models": [{"id": "chat", "backends": list(backends or (A, B, C)), **fields}]}


def canary(**fields: Any) -> dict[str, Any]:
    return document(policy="canary", canary={"backends": ["a"], "percent": 5, **fields})


def experiment(**fields: Any) -> dict[str, Any]:
    arms = {"one": {"backends": ["a"]}, "two": {"backends": ["b"]}}
    return document(policy="experiment", experiment={"name": "e", "arms": arms, **fields})


def sticky(**fields: Any) -> dict[str, Any]:
    return document(policy="sticky", sticky=fields)


def probe(**fields: Any) -> dict[str, Any]:
    return document({**CUSTOM, "probe": {"path": "/health", **fields}})


def test_everything_is_read_and_written_in_one_form() -> None:
    read = read_text(EVERYTHING, {})
    chat, spare, embed = read.as_dict()["models"]
    assert chat["canary"] == {"backends": ["new"], "percent": 5.0, "by": "header:x-team"}
    assert chat["shadow"] == {"backend": "dark", "sample": 0.05, "max_in_flight": 4}
    assert (chat["fallback"], chat["retries"]) == ("spare", {"ratio": 0.1, "max_attempts": 3})
    assert chat["backends"][0]["priority"] == 1
    assert chat["backends"][0]["probe"] == {"path": "/health", "interval_s": 5.0, "timeout_s": 0.5}
    assert spare["experiment"] == {
        "name": "summer",
        "by": "user",
        "arms": {"controlGroup": {"backends": ["echo-1"], "weight": 1}, "candidate": {"weight": 3, "backends": ["echo-2"]}},
    }
    assert embed["sticky"] == {"by": "prefix", "prefix_bytes": 256, "load_factor": 1.5}
    assert parse_document(read.as_dict()) == read
    assert read_text(export_yaml(read.as_dict()), {}) == read


def test_documents_that_use_none_of_it_keep_their_text() -> None:
    """The text decides whether a file is a new revision: an upgrade must not make every file one."""
    assert canonical(parse_document(document({**CUSTOM, "priority": 0}, fallback=None))) == (
        '{"models":[{"backends":[{"base_url":"http://10.0.0.5:8000/v1","id":"a","type":"custom","weight":1}],"id":"chat","policy":"weighted"}]}'
    )


def test_defaults() -> None:
    read = parse_document(document(CUSTOM | {"probe": {"path": "/up"}}, policy="sticky", sticky={}, retries={}))
    model = read.as_dict()["models"][0]
    assert model["sticky"] == {"by": "key", "prefix_bytes": 1024, "load_factor": 1.25}
    assert model["retries"] == {"ratio": 0.2, "max_attempts": 2}
    assert model["backends"][0]["probe"] == {"path": "/up", "interval_s": 10.0, "timeout_s": 2.0}


@pytest.mark.parametrize(
    ("data", "place", "says"),
    [
        (document(sticky={}), "sticky", 'unless the model says "policy: sticky"'),
        (document(policy="sticky", canary={"backends": ["a"], "percent": 1}), "canary", '"policy: canary"'),
        (document(policy="canary"), "policy", 'needs "canary:"'),
        (document(policy="experiment"), "policy", 'needs "experiment:"'),
        (document(policy="canari"), "policy", 'did you mean "canary"'),
        (sticky(by="users"), "sticky.by", 'did you mean "user"'),
        (sticky(by="header:"), "sticky.by", "must name a header"),
        (sticky(by="header:x y"), "sticky.by", "must name a header"),
        (sticky(by="header:Authorization"), "sticky.by", "carries the credential"),
        (sticky(by=5), "sticky.by", "must be text"),
        (sticky(loadFactor=0.9), "sticky.load_factor", "1 or more"),
        (sticky(loadFactor="much"), "sticky.load_factor", "must be a number"),
        (sticky(prefix_bytes=0), "sticky.prefix_bytes", "1 or more"),
        (sticky(loadfactor=2), "sticky.loadfactor", 'did you mean "load_factor"'),
        (sticky(load_factor=2, loadFactor=2), "sticky.loadFactor", "second time"),
        (document(policy="sticky", sticky=[]), "sticky", "must be a mapping"),
        (canary(percent=101), "canary.percent", "at most 100"),
        (canary(percent=-1), "canary.percent", "0 or more"),
        (canary(percent=True), "canary.percent", "must be a number"),
        (canary(percent=None), "canary.percent", "must be a number"),
        (canary(backends=[]), "canary.backends", "at least one"),
        (canary(backends="a"), "canary.backends", "must be a list"),
        (canary(backends=["d"]), "canary.backends[0]", '"d" is no backend of this model'),
        (canary(backends=["a", "b", "c"]), "canary.backends", "nothing is left for the stable side"),
        (canary(by="prefix"), "canary.by", 'must not be "prefix"'),
        (experiment(arms={}), "experiment.arms", "at least two"),
        (experiment(arms={"one": {"backends": ["a"]}}), "experiment.arms", "at least two"),
        (experiment(arms=["a", "b"]), "experiment.arms", "must be a mapping"),
        (experiment(arms={"one": {"backends": []}, "two": {"backends": ["b"]}}), "experiment.arms.one.backends", "at least one"),
        (experiment(arms={"one": {"backends": ["a"]}, "two": {"backends": ["x"]}}), "experiment.arms.two.backends[0]", "no backend"),
        (experiment(arms={"one": {"backends": ["a"]}, "two": {"backends": ["b", "a"]}}), "experiment.arms.two.backends[1]", 'arm "one"'),
        (experiment(arms={"one": {"backends": ["a"]}, "t w": {"backends": ["b"]}}), "experiment.arms.t w", "letters"),
        (experiment(arms={"one": {"backends": ["a"], "wait": 1}, "two": {"backends": ["b"]}}), "experiment.arms.one.wait", '"weight"'),
        (
            experiment(arms={"one": {"backends": ["a"], "weight": 0}, "two": {"backends": ["b"], "weight": "0"}}),
            "experiment.arms",
            "must not all have the weight 0",
        ),
        (experiment(name="a b"), "experiment.name", "letters"),
        (experiment(name=None), "experiment.name", "must be text"),
        (document(shadow={"backend": "d", "sample": 0.1}), "shadow.backend", "no backend of this model"),
        (document(shadow={"backend": "a", "sample": 1.1}), "shadow.sample", "at most 1"),
        (document(shadow={"backend": "a"}), "shadow.sample", "is missing"),
        (document(shadow={"backend": "a", "sample": 0.1, "maxInFlight": 0}), "shadow.max_in_flight", "1 or more"),
        (document(fallback="chta"), "fallback", 'no model "chta" (did you mean "chat"?)'),
        (document(fallback="chat"), "fallback", "leads back to where it began: chat -> chat"),
        (document(fallback=""), "fallback", "must not be empty"),
        (document(retries={"ratio": 2}), "retries.ratio", "at most 1"),
        (document(retries={"maxAttempts": 0}), "retries.max_attempts", "1 or more"),
        (document({**A, "priority": -1}), "backends[0].priority", "0 or more"),
        (document({**A, "probe": {"path": "/"}}), "backends[0].probe", 'unknown key "probe"'),
        (probe(path="//other/health"), "backends[0].probe.path", "no other server"),
        (probe(path="http://other/health"), "backends[0].probe.path", "no other server"),
        (probe(path="/v1/../x"), "backends[0].probe.path", '".."'),
        (probe(path="/a b"), "backends[0].probe.path", "characters"),
        (probe(path="/a#b"), "backends[0].probe.path", "characters"),
        (probe(intervalS=0), "backends[0].probe.interval_s", "0.1 or more"),
        (probe(interval=5), "backends[0].probe.interval", 'did you mean "interval_s"'),
    ],
)
def test_one_fault(data: dict[str, Any], place: str, says: str) -> None:
    with pytest.raises(DocumentInvalid) as caught:
        parse_document(data)
    faults = {fault.place: fault.message for fault in caught.value.faults}
    assert list(faults) == [f"models[0].{place}"]
    assert says in faults[f"models[0].{place}"]


def test_a_circle_of_fallbacks_is_said_once_and_what_leads_into_it_is_not_blamed() -> None:
    following = {"into": "one", "one": "two", "two": "three", "three": "one", "fine": "end", "end": None}
    data = {"models": [{"id": name, "backends": [A], "fallback": to} for name, to in following.items()]}
    with pytest.raises(DocumentInvalid) as caught:
        parse_document(data)
    assert [str(fault) for fault in caught.value.faults] == ["models[1].fallback: leads back to where it began: one -> two -> three -> one"]


def test_names_that_are_derived_can_be_named() -> None:
    backends = [{"type": "echo"}, {"type": "echo", "id": "echo-1"}]
    parse_document(document(*backends, shadow={"backend": "echo-2", "sample": 1}))
    with pytest.raises(DocumentInvalid, match="there are: echo-2, echo-1"):
        parse_document(document(*backends, shadow={"backend": "echo-3", "sample": 1}))


def test_every_fault_has_the_line_that_it_is_on() -> None:
    text = EVERYTHING.replace("percent: ", "precent: ").replace("[echo-2]", "[echo-9]").replace("fallback: spare", "fallback: sparse")
    text = text.replace("intervalS: 5", "intervalS: -5").replace("loadFactor: 1.5", "loadFactor: 0")
    text = text.replace("controlGroup: {backends: [echo-1]}", "controlGroup: {backends: [echo-1], wieght: 1}")
    with pytest.raises(DocumentInvalid) as caught:
        read_text(text, {})
    assert [(fault.line, fault.place) for fault in caught.value.faults] == [
        (4, "models[0].canary.percent"),
        (4, "models[0].canary.precent"),
        (6, "models[0].fallback"),
        (9, "models[0].backends[0].probe.interval_s"),
        (17, "models[1].experiment.arms.controlGroup.wieght"),
        (18, "models[1].experiment.arms.candidate.backends[0]"),
        (22, "models[2].sticky.load_factor"),
    ]


@pytest.mark.parametrize("rubbish", [5, "x", [], [5], {"a": 5}, {5: 6}, None, True, {"backends": {"x": []}}, {"arms": {"x": 5}}])
@pytest.mark.parametrize("name", ["sticky", "canary", "experiment", "shadow", "fallback", "retries", "backends", "policy", "id"])
def test_no_rubbish_is_more_than_a_fault(name: str, rubbish: Any) -> None:
    data = document()
    data["models"][0][name] = rubbish
    try:
        parse_document(data)
    except DocumentInvalid as error:
        assert error.faults
