"""The facts of metrics: every metric has its own, and the documentation prints them."""

import re
from pathlib import Path

from supple.diagnostics import DIAGNOSTICS, Diagnostic, Metric, diagnostic
from supple.lab.run import Run
from supple.runs.metrics import METRICS, find

PAGE = Path(__file__).parents[2] / "docs" / "laboratory.md"
BETTER = {True: "more", False: "less", None: ""}


def documented():
    """The table of the page, from the facts."""
    lines = ["| metric | name in charts | better | what it is |", "|---|---|---|---|"]
    for name in [*METRICS, *DIAGNOSTICS]:
        facts, usual = find(name), name in DIAGNOSTICS and DIAGNOSTICS[name].usual
        summary = re.sub(r":math:`([^`]+)`", r"$\1$", facts.summary).replace("|", "\\|")
        lines.append(f"| `{name}`{' *' * usual} | {facts.axis} | {BETTER[facts.higher_is_better]} | {summary} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_metrics():
    assert documented() in PAGE.read_text(), f"write this table into {PAGE.name}:\n{documented()}"


def test_a_metric_has_its_facts():
    for name in [*METRICS, *DIAGNOSTICS]:
        facts = find(name)
        assert facts.title.strip(), name
        assert facts.summary.endswith("."), name
        assert find(f"{name}/0.1").title == f"{facts.title}, 0.1"


def test_a_diagnostic_of_ones_own_takes_one_place(monkeypatch):
    monkeypatch.setattr("supple.diagnostics.facts.DIAGNOSTICS", own := {})

    @diagnostic(title="a title", higher_is_better=False, scale="symlog", usual=True)
    def of_ones_own(parameters, size=1):
        """The a title.

        More.
        """

    facts = Metric("a title", "The a title.", higher_is_better=False, scale="symlog")
    assert own == {"of_ones_own": Diagnostic(function=of_ones_own, metric=facts, usual=True)}
    assert own["of_ones_own"].needs == ("parameters",)
    monkeypatch.setitem(DIAGNOSTICS, "of_ones_own", own["of_ones_own"])
    assert Run.of("random-label-digits", "none", [0]).diagnostics[-1] == "of_ones_own"
    assert find("of_ones_own") == facts


def test_a_metric_without_facts_has_its_name_as_title():
    assert find("my_metric/0").axis == "my metric, 0"
