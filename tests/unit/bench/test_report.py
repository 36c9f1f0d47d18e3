"""Ratios are of medians, void trials do not count, and a system is compared with another only where both have run."""

from __future__ import annotations

from bench.report import Metric, comparisons, figure
from bench.run import choose_scenarios
from bench.scenarios import full, quick
from bench.trial import Trial

CPU = Metric("", "chat32", "cpu_us")


def trial(system: str, number: int, cpu: float, serving: float = 0.0, fault: str = "") -> Trial:
    return Trial(system, "chat32", number, {"cpu_us": cpu, "serving_us": serving}, [fault] if fault else [])


TRIALS = [
    *(trial("anchor", number, 100.0) for number in range(3)),
    *(trial("gateway", number, cpu, 40.0) for number, cpu in enumerate((50.0, 60.0, 70.0))),
    *(trial("gateway-null", number, 30.0, 30.0) for number in range(3)),
    trial("gateway", 3, 1000.0, fault="a wrong answer"),
]


def test_the_ratio_is_that_of_the_medians_of_valid_rounds() -> None:
    cell = figure(TRIALS, "gateway", CPU)
    assert cell is not None
    assert (cell.median, cell.ratio, cell.lowest, cell.highest, cell.rounds) == (60.0, 0.6, 0.5, 0.7, 3)


def test_pairs_compare_serving_alone_and_all_of_it() -> None:
    found = comparisons(TRIALS, ["anchor", "gateway", "gateway-null"])
    assert {title: round(cells["chat32"]["ratio"], 2) for title, cells in found.items()} == {
        "gateway / gateway-null, serving process alone": 1.33,
        "gateway / gateway-null, keeper and supervisor with it": 2.0,
    }


def test_a_named_scenario_is_found_whatever_the_size() -> None:
    assert [s.name for s in choose_scenarios(True, ["idle5000", "chat32"])] == ["chat32", "idle5000"]
    assert choose_scenarios(True, ["chat32"])[0] in quick()
    assert choose_scenarios(False, None) == full()
