"""The figures of a suite as Markdown, JSON and a picture, beside the paper's and those of an earlier run."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.intervals import LEVEL, Estimate
from evaluation.paper import SOURCE, PaperRow
from evaluation.suite_scores import Change, SuiteScores, from_dict, is_accuracy
from loadtest.picture import COLOURS

REPORT, FIGURES, PICTURE = "suite.md", "suite.json", "suite.svg"


def load_earlier(path: Path, suite: str, part: str) -> SuiteScores:
    """The figures that an earlier run wrote.

    Raises:
        EvaluationError: they are not there, or of another suite or part.
    """
    try:
        earlier = from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"--compare {path}: not the {FIGURES} of an earlier run ({error!r})") from error
    found = (earlier.about.get("suite"), earlier.about.get("part"))
    if found != (suite, part):
        raise EvaluationError(f"--compare {path}: it is of {found[0]} {found[1]}, this run is of {suite} {part}")
    return earlier


def write_report(
    folder: Path,
    scores: SuiteScores,
    paper: Sequence[PaperRow],
    earlier: SuiteScores | None = None,
    changes: Sequence[Change] = (),
) -> None:
    """Write the three files.

    Raises:
        EvaluationError: a file cannot be written.
    """
    figures = {
        **scores.to_dict(),
        "paper": [{"model": row.model, "measure": row.measure, "percent": row.percent} for row in paper],
        "changes": [
            {"measure": each.measure, "cases": each.cases, "before": each.before, "after": each.after,
             **asdict(each.difference)}
            for each in changes
        ],
    }  # fmt: skip
    try:
        (folder / FIGURES).write_text(json.dumps(_plain(figures), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / REPORT).write_text(markdown(scores, paper, earlier, changes), encoding="utf-8")
        (folder / PICTURE).write_bytes(picture(scores, paper, earlier))
    except OSError as error:
        raise EvaluationError(f"{folder}: the report cannot be written: {error}") from error


def markdown(
    scores: SuiteScores, paper: Sequence[PaperRow], earlier: SuiteScores | None, changes: Sequence[Change]
) -> str:
    about, mode = scores.about, scores.about.get("mode")
    lines = [f"# {about['suite']} {about['part']}", "", *(f"- {name}: {value}" for name, value in about.items())]
    lines += [f"- **{note}**" for note in scores.notes]
    answered = scores.asked - sum(scores.skipped.values())
    lines += [f"- cases: {scores.asked}, scored {answered}, skipped {scores.asked - answered}", "", f"![]({PICTURE})"]
    lines += ["", f"Intervals: bootstrap over the cases, {LEVEL:.0%}.", ""]
    rows = [
        [measure, *_estimate(estimate), str(len(scores.parts[measure]))]
        for measure, estimate in scores.estimates.items()
    ]
    lines += _table(["measure", "value", "interval", "cases"], rows)
    if scores.skipped:
        lines += ["## Skipped", ""]
        lines += _table(["why", "cases"], [[why, str(count)] for why, count in scores.skipped.items()])
    lines += [
        "## Speed",
        "",
        "Of requests in flight together; the load test measures speed.",
        "",
    ]
    lines += _table(["", ""], [[name, _plain_number(value)] for name, value in scores.speed.items()])
    if paper:
        judges = "Judges of its speech: Paraformer (Chinese), Whisper-large-v3 (English)."
        lines += ["## The paper", "", f"{SOURCE}: 7B, all cases; which normaliser, it does not say. {judges}", ""]
        lines += _table(
            ["model", "its mode", "measure", "paper", "this run", "table"],
            [
                [row.model, row.mode + (" (this run's)" if row.mode == mode else ""), row.measure,
                 f"{row.percent:.2f} %",
                 _percent(scores.estimates[row.measure].value) if row.measure in scores.estimates else "-", row.table]
                for row in paper
            ],
        )  # fmt: skip
    if earlier is not None:
        lines += _comparison(scores, earlier, changes)
    return "\n".join(lines) + "\n"


def picture(scores: SuiteScores, paper: Sequence[PaperRow], earlier: SuiteScores | None) -> bytes:
    """SVG: a panel a measure; this run and the earlier one with their intervals, the paper's rows as points."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    measures = list(scores.estimates) or ["nothing was scored"]
    made = io.BytesIO()
    with rc_context({"font.size": 9, "svg.hashsalt": "vita-audio"}):
        most = max(1 + (earlier is not None) + sum(row.measure == measure for row in paper) for measure in measures)
        size = (5.6 * len(measures), 1.2 + 0.35 * most)
        figure = Figure(figsize=size, layout="constrained")
        for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
            bars = [("this run", scores.estimates.get(measure), COLOURS[0])]
            if earlier is not None:
                bars.append(("earlier run", earlier.estimates.get(measure), COLOURS[1]))
            names: list[str] = []
            right = 0.0
            for name, estimate, colour in bars:
                if estimate is None or math.isnan(estimate.value):
                    continue
                value, low, high = (100 * each for each in (estimate.value, estimate.low, estimate.high))
                ends = [[max(value - low, 0)], [max(high - value, 0)]]
                axes.errorbar(value, len(names), xerr=ends, fmt="o", color=colour, capsize=3)
                names.append(name)
                right = max(right, high)
            for row in paper:
                if row.measure == measure:
                    axes.plot(row.percent, len(names), "D", color=COLOURS[5])
                    names.append(f"paper, {row.model}")
                    right = max(right, row.percent)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
            axes.set_xlim(0, 100 if is_accuracy(measure) else (right or 100) * 1.1)
            axes.set_xlabel(f"{'right answers' if is_accuracy(measure) else 'error rate'}, %")
            axes.set_title(measure, loc="left")
            axes.grid(axis="x", color="#e4e4e4")
            axes.set_axisbelow(True)
        figure.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()


def _comparison(scores: SuiteScores, earlier: SuiteScores, changes: Sequence[Change]) -> list[str]:
    rows = []
    for change in changes:
        low, high = change.difference.low, change.difference.high
        worse = high < 0 if is_accuracy(change.measure) else low > 0
        better = low > 0 if is_accuracy(change.measure) else high < 0
        verdict = "worse" if worse else "better" if better else "may be chance"
        points = f"{100 * change.difference.value:+.2f}"
        rows.append([
            change.measure, _percent(change.before), _percent(change.after), points,
            f"{100 * low:+.2f} to {100 * high:+.2f}", verdict, str(change.cases),
        ])  # fmt: skip
    lines = ["## Beside the earlier run", "", "Differences in points, over the cases that both runs scored.", ""]
    lines += _table(["measure", "earlier", "this run", "difference", "interval", "", "cases"], rows)
    names = dict.fromkeys([*earlier.about, *scores.about])
    differs = [
        [name, str(earlier.about.get(name, "-")), str(scores.about.get(name, "-"))]
        for name in names
        if earlier.about.get(name) != scores.about.get(name)
    ]
    differs += [
        [name, _plain_number(earlier.speed.get(name)), _plain_number(value)] for name, value in scores.speed.items()
    ]
    return [*lines, "What differs, and the speed of both:", "", *_table(["", "earlier", "this run"], differs)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows), ""]


def _estimate(estimate: Estimate) -> tuple[str, str]:
    return _percent(estimate.value), f"{_percent(estimate.low)} to {_percent(estimate.high)}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"


def _plain_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 10 else f"{value:.0f}"


def _plain(value: Any) -> Any:
    """The same with None for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
