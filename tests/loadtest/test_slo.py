"""The verdict of a run: each limit against its own figure."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.group import Group
from loadtest.histogram import Histogram
from loadtest.slo import Check, Slo, verdict


def group(**changes: Any) -> Group:
    """100 streams, each figure another number: P95 of TTFA 95 ms, 2 of 50 spoken broke off, 4 of 100 were lost."""
    known: dict[str, Any] = {
        "counts": {
            "done": 90,
            "interrupted": 6,
            "rejected": 1,
            "failed": 2,
            "unfinished": 1,
            "spoken": 50,
            "broken": 2,
        },
        "histograms": {
            name: Histogram.of([factor * value for value in range(1, 101)])
            for name, factor in {"ttfa": 1.0, "first_pcm": 2.0, "first_text": 3.0, "total": 4.0, "gap": 5.0}.items()
        },
    }
    return Group(**{**known, **changes})


def test_each_limit_has_its_own_figure() -> None:
    ttfa, underruns, lost = verdict(group(), Slo(100.0, 0.5, 0.25))
    assert [check.name for check in (ttfa, underruns, lost)] == ["TTFA P95", "underrun rate", "loss rate"]
    assert ttfa.value == pytest.approx(95, abs=0.5)
    assert (underruns.value, lost.value) == (0.04, 0.04)
    assert [check.limit for check in (ttfa, underruns, lost)] == [100.0, 0.5, 0.25]
    assert all(check.kept for check in (ttfa, underruns, lost))


@pytest.mark.parametrize(("slo", "kept"), [
    (Slo(90.0, 0.5, 0.5), [False, True, True]),
    (Slo(100.0, 0.03, 0.5), [True, False, True]),
    (Slo(100.0, 0.5, 0.03), [True, True, False]),
    (Slo(100.0, 0.04, 0.04), [True, True, True]),
])  # fmt: skip
def test_one_limit_that_is_missed_leaves_the_others(slo: Slo, kept: list[bool]) -> None:
    assert [check.kept for check in verdict(group(), slo)] == kept


def test_nothing_measured_is_not_kept() -> None:
    assert [(check.value, check.kept) for check in verdict(Group(), Slo())] == [(None, False)] * 3
    silent = verdict(group(counts={"failed": 1}, histograms={}), Slo())
    assert [check.value for check in silent] == [None, None, 1.0]


def test_a_verdict_in_the_units_of_a_reader() -> None:
    assert str(Check("TTFA P95", 310.4, 300.0, "ms")) == "SLO MISSED: TTFA P95 310 ms, promised at most 300 ms"
    assert str(Check("loss rate", 0.004, 0.01, "")) == "SLO kept: loss rate 0.4 %, promised at most 1 %"
    assert str(Check("loss rate", 1.0, 0.125, "")) == "SLO MISSED: loss rate 100 %, promised at most 12.5 %"
    assert str(Check("loss rate", None, 0.01, "")) == "SLO MISSED: loss rate -, promised at most 1 %"
